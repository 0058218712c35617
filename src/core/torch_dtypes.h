#pragma once

#include <array>

#include <c10/core/ScalarType.h>

namespace contrastive::detail {

/// How PyTorch's files name a dtype.
struct TorchDtype {
  at::ScalarType dtype;
  const char* dtype_name;
  const char* storage_name;  ///< nullptr: none; such tensors lie in an untyped storage
};

inline constexpr std::array<TorchDtype, 15> kTorchDtypes{{
    {at::kFloat, "torch.float32", "torch.FloatStorage"},
    {at::kHalf, "torch.float16", "torch.HalfStorage"},
    {at::kBFloat16, "torch.bfloat16", "torch.BFloat16Storage"},
    {at::kDouble, "torch.float64", "torch.DoubleStorage"},
    {at::kLong, "torch.int64", "torch.LongStorage"},
    {at::kInt, "torch.int32", "torch.IntStorage"},
    {at::kShort, "torch.int16", "torch.ShortStorage"},
    {at::kChar, "torch.int8", "torch.CharStorage"},
    {at::kByte, "torch.uint8", "torch.ByteStorage"},
    {at::kBool, "torch.bool", "torch.BoolStorage"},
    {at::kComplexFloat, "torch.complex64", "torch.ComplexFloatStorage"},
    {at::kComplexDouble, "torch.complex128", "torch.ComplexDoubleStorage"},
    {at::kUInt16, "torch.uint16", nullptr},
    {at::kUInt32, "torch.uint32", nullptr},
    {at::kUInt64, "torch.uint64", nullptr},
}};

}  // namespace contrastive::detail

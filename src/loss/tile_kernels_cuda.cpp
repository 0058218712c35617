#include <ATen/Dispatch.h>
#include <ATen/Functions.h>
#include <c10/cuda/CUDAGuard.h>
#include <c10/cuda/CUDAStream.h>

#include "loss/cuda_kernels.h"
#include "loss/tile_kernels.h"

namespace contrastive::loss::detail::cuda {
namespace {

template <typename T>
TilePart<T> part_of(const Tile& tile, const torch::Tensor& scale, const torch::Tensor& shift) {
  return {tile.products.data_ptr<T>(),
          tile.products.size(0),
          tile.products.size(1),
          tile.own,
          scale.const_data_ptr<T>(),
          shift.const_data_ptr<T>(),
          c10::cuda::getCurrentCUDAStream().stream()};
}

torch::Tensor room_for(const Tile& tile, int64_t planes, int64_t blocks_along, int64_t width) {
  return at::empty({planes, (blocks_along + kBlockSide - 1) / kBlockSide, width}, tile.products.options());
}

}  // namespace

void add_softmax_statistics(const Tile& tile, const torch::Tensor& scale, const torch::Tensor& shift,
                            const RowStatistics& rows, const ColumnStatistics& columns) {
  const c10::cuda::CUDAGuard guard(tile.products.device());
  const auto row_room = room_for(tile, 3, tile.products.size(1), tile.products.size(0));
  const auto column_room = room_for(tile, 2, tile.products.size(0), tile.products.size(1));
  AT_DISPATCH_FLOATING_TYPES(tile.products.scalar_type(), "add_softmax_statistics", [&] {
    const auto data = [](const torch::Tensor& tensor) { return tensor.data_ptr<scalar_t>(); };
    launch_softmax_sums<scalar_t>(part_of<scalar_t>(tile, scale, shift),
                                  {data(rows.own), data(rows.before), data(rows.after), data(rows.sum),
                                   data(columns.maximum), data(columns.sum), data(row_room), data(column_room)});
  });
}

void products_to_weights(const Tile& tile, const torch::Tensor& scale, const torch::Tensor& shift,
                         const SoftmaxShares& rows, const SoftmaxShares& columns, const torch::Tensor& own_weights) {
  const c10::cuda::CUDAGuard guard(tile.products.device());
  AT_DISPATCH_FLOATING_TYPES(tile.products.scalar_type(), "products_to_weights", [&] {
    const auto data = [](const torch::Tensor& tensor) { return tensor.const_data_ptr<scalar_t>(); };
    launch_weights<scalar_t>(
        part_of<scalar_t>(tile, scale, shift),
        {data(rows.reference), data(rows.factor), data(own_weights), data(columns.reference), data(columns.factor)});
  });
}

void products_to_slopes(const Tile& tile, const torch::Tensor& scale, const torch::Tensor& bias,
                        const SigmoidStatistics& rows) {
  const c10::cuda::CUDAGuard guard(tile.products.device());
  AT_DISPATCH_FLOATING_TYPES(tile.products.scalar_type(), "products_to_slopes", [&] {
    const auto data = [](const torch::Tensor& tensor) { return tensor.data_ptr<scalar_t>(); };
    launch_slopes<scalar_t>(part_of<scalar_t>(tile, scale, bias),
                            {data(rows.own), data(rows.before), data(rows.after), data(rows.loss), data(rows.slope)});
  });
}

}  // namespace contrastive::loss::detail::cuda

#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

namespace contrastive::detail {

/// One value of a pickle. Values refer to each other by their index in PickleGraph::nodes.
struct PickleNode {
  enum class Kind : uint8_t {
    kNone,
    kBool,        ///< `integer` is 0 or 1
    kInt,         ///< `integer`
    kBigInt,      ///< `text`: two's complement, little-endian, more than 8 bytes
    kFloat,       ///< `real`
    kString,      ///< `text`, UTF-8 if the file is honest
    kBytes,       ///< `text`
    kList,        ///< `children`
    kTuple,       ///< `children`
    kSet,         ///< `children`
    kDict,        ///< `children`: key, value, key, value ...
    kGlobal,      ///< `text` and `name`: module and class or function, which are only named, never looked up
    kObject,      ///< a class or function, applied: `children` are it, its arguments and then its items
    kPersistent,  ///< `children`: what tells the outside object
  };
  /// Which instructions gave an object its items.
  enum class Items : uint8_t { kNone, kValues, kPairs };

  static constexpr uint32_t kNoNode = UINT32_MAX;
  static constexpr size_t kFirstItem = 2;

  Kind kind = Kind::kNone;
  Items items = Items::kNone;
  uint32_t state = kNoNode;  ///< of an object, what its __setstate__ would get
  union {
    int64_t integer = 0;
    double real;
  };
  std::string_view text;  ///< points into the pickle
  std::string_view name;  ///< points into the pickle
  std::vector<uint32_t> children;
};

/// What a pickle describes; without cycles.
struct PickleGraph {
  std::vector<PickleNode> nodes;
  uint32_t root = 0;
  /// The nodes that the root needs, each after those it refers to.
  std::vector<uint32_t> order;
};

/// Reads a pickle of protocol 2 to 5 (without out-of-band buffers) and runs nothing: objects stay descriptions.
/// Memory and time are bounded by the pickle's size. `pickle` must outlive the result; `where` begins every message.
/// Throws: CheckpointError if the pickle is truncated, malformed, nested too deeply, cyclic or too large.
/// Source: the comments of CPython's Lib/pickletools.py.
PickleGraph read_pickle(const std::string& where, std::string_view pickle);

}  // namespace contrastive::detail

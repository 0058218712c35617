#include "core/unpickler.h"

#include <algorithm>
#include <bit>
#include <cstring>

#include <fmt/format.h>

#include "contrastive/core/error.h"

#include "core/shown.h"

namespace contrastive::detail {
namespace {

using Kind = PickleNode::Kind;

/// An instruction of one byte can make a value of 150, so that the count is bounded beside the size.
constexpr size_t kMaxPickleBytes = size_t{256} << 20;
constexpr size_t kMaxValues = 2'000'000;
/// Deep enough for every module tree, shallow enough for walking and freeing it recursively.
constexpr uint32_t kMaxDepth = 256;
/// A class that is named once can be used in every object, and each use compares the name.
constexpr size_t kMaxGlobalBytes = 512;
constexpr uint8_t kHighestProtocol = 5;

enum Opcode : uint8_t {
  kMark = '(',
  kStop = '.',
  kPop = '0',
  kPopMark = '1',
  kDup = '2',
  kBinInt = 'J',
  kBinInt1 = 'K',
  kBinInt2 = 'M',
  kNone = 'N',
  kBinPersId = 'Q',
  kReduce = 'R',
  kBinString = 'T',
  kShortBinString = 'U',
  kBinUnicode = 'X',
  kAppend = 'a',
  kBuild = 'b',
  kGlobal = 'c',
  kAppends = 'e',
  kBinGet = 'h',
  kLongBinGet = 'j',
  kBinPut = 'q',
  kLongBinPut = 'r',
  kSetItem = 's',
  kTuple = 't',
  kSetItems = 'u',
  kBinFloat = 'G',
  kBinBytes = 'B',
  kShortBinBytes = 'C',
  kEmptyList = ']',
  kEmptyTuple = ')',
  kEmptyDict = '}',
  kProto = 0x80,
  kNewObj = 0x81,
  kTuple1 = 0x85,
  kTuple2 = 0x86,
  kTuple3 = 0x87,
  kNewTrue = 0x88,
  kNewFalse = 0x89,
  kLong1 = 0x8a,
  kLong4 = 0x8b,
  kShortBinUnicode = 0x8c,
  kBinUnicode8 = 0x8d,
  kBinBytes8 = 0x8e,
  kEmptySet = 0x8f,
  kAddItems = 0x90,
  kFrozenSet = 0x91,
  kNewObjEx = 0x92,
  kStackGlobal = 0x93,
  kMemoize = 0x94,
  kFrame = 0x95,
  kByteArray8 = 0x96,
};

class Machine {
 public:
  Machine(const std::string& where, std::string_view pickle) : where_(where), pickle_(pickle) {
    if (pickle.size() > kMaxPickleBytes) {
      fail(fmt::format("has {} bytes, at most {} are accepted", pickle.size(), kMaxPickleBytes));
    }
  }

  PickleGraph run() {
    while (step(take<uint8_t>())) {
    }
    PickleGraph graph;
    graph.root = pop();
    graph.nodes = std::move(nodes_);
    return graph;
  }

 private:
  [[noreturn]] void fail(const std::string& message) const {
    throw CheckpointError(fmt::format("[{}] the pickle {} (byte {})", where_, message, position_));
  }

  // Reading.

  std::string_view take_bytes(uint64_t size) {
    if (size > pickle_.size() - position_) {
      fail(fmt::format("ends after {} bytes, {} more were announced; the file is truncated or damaged", pickle_.size(),
                       size - (pickle_.size() - position_)));
    }
    const auto bytes = pickle_.substr(position_, size);
    position_ += size;
    return bytes;
  }

  template <typename Number>
  Number take() {
    Number value;
    std::memcpy(&value, take_bytes(sizeof(value)).data(), sizeof(value));
    return value;
  }

  std::string_view take_line() {
    const auto length = pickle_.substr(position_).find('\n');
    if (length == std::string_view::npos) fail("ends within a name; the file is truncated or damaged");
    const auto line = pickle_.substr(position_, length);
    position_ += length + 1;
    return line;
  }

  // The stack.

  void push(uint32_t node) {
    if (++num_values_ > kMaxValues) fail(fmt::format("makes more than {} values", kMaxValues));
    stack_.push_back(node);
  }

  uint32_t add(PickleNode node) {
    nodes_.push_back(std::move(node));
    return static_cast<uint32_t>(nodes_.size() - 1);
  }

  void push_new(Kind kind, std::vector<uint32_t> children = {}) {
    PickleNode node;
    node.kind = kind;
    node.children = std::move(children);
    push(add(std::move(node)));
  }

  void push_text(Kind kind, std::string_view text) {
    PickleNode node;
    node.kind = kind;
    node.text = text;
    push(add(std::move(node)));
  }

  void push_integer(Kind kind, int64_t value) {
    PickleNode node;
    node.kind = kind;
    node.integer = value;
    push(add(std::move(node)));
  }

  void push_float(uint64_t big_endian) {
    PickleNode node;
    node.kind = Kind::kFloat;
    node.real = std::bit_cast<double>(__builtin_bswap64(big_endian));
    push(add(std::move(node)));
  }

  /// Two's complement, little-endian, no bytes for 0.
  void push_long(std::string_view bytes) {
    if (bytes.size() > sizeof(int64_t)) return push_text(Kind::kBigInt, bytes);
    const bool is_negative = !bytes.empty() && (static_cast<uint8_t>(bytes.back()) & 0x80) != 0;
    int64_t value = is_negative ? -1 : 0;
    std::memcpy(&value, bytes.data(), bytes.size());
    push_integer(Kind::kInt, value);
  }

  void push_global(std::string_view module, std::string_view name) {
    if (module.size() + name.size() > kMaxGlobalBytes) {
      fail(fmt::format("names a class with {} bytes", module.size() + name.size()));
    }
    PickleNode node;
    node.kind = Kind::kGlobal;
    node.text = module;
    node.name = name;
    push(add(std::move(node)));
  }

  size_t stack_floor() const { return marks_.empty() ? 0 : marks_.back(); }

  uint32_t top() const {
    if (stack_.size() <= stack_floor()) fail("takes a value from an empty stack");
    return stack_.back();
  }

  uint32_t pop() {
    const auto node = top();
    stack_.pop_back();
    return node;
  }

  /// The last `count` values, in their order.
  std::vector<uint32_t> pop_values(size_t count) {
    if (stack_.size() - stack_floor() < count) fail("takes a value from an empty stack");
    std::vector<uint32_t> values(stack_.end() - static_cast<ptrdiff_t>(count), stack_.end());
    stack_.resize(stack_.size() - count);
    return values;
  }

  std::vector<uint32_t> pop_to_mark() {
    if (marks_.empty()) fail("closes a group that was not opened");
    auto values = pop_values(stack_.size() - marks_.back());
    marks_.pop_back();
    return values;
  }

  // The memo.

  void put(uint64_t index) {
    // Every entry takes two bytes of the pickle or more.
    if (index >= pickle_.size()) fail(fmt::format("remembers a value as number {}, which can't be", index));
    if (index >= memo_.size()) memo_.resize(std::max<size_t>(index + 1, std::min(2 * index, pickle_.size())), kUnset);
    if (memo_[index] == kUnset) ++num_remembered_;
    memo_[index] = top();
  }

  uint32_t remembered(uint64_t index) const {
    if (index >= memo_.size() || memo_[index] == kUnset) {
      fail(fmt::format("asks for value number {}, which was not remembered", index));
    }
    return memo_[index];
  }

  // Containers and objects.

  void add_items(Kind container, PickleNode::Items items, const std::vector<uint32_t>& values) {
    auto& target = nodes_[top()];
    if (target.kind == Kind::kObject && (target.items == PickleNode::Items::kNone || target.items == items)) {
      target.items = items;
    } else if (target.kind != container) {
      fail("adds items to a value that can't hold them");
    }
    target.children.insert(target.children.end(), values.begin(), values.end());
  }

  void add_pairs(const std::vector<uint32_t>& values) {
    if (values.size() % 2 != 0) fail("adds a key without a value");
    add_items(Kind::kDict, PickleNode::Items::kPairs, values);
  }

  void build_object(size_t num_operands) {
    auto operands = pop_values(num_operands);
    if (nodes_[operands[1]].kind != Kind::kTuple) fail("makes an object with arguments that are not a tuple");
    if (operands.size() > PickleNode::kFirstItem) {  // keyword arguments
      PickleNode arguments;
      arguments.kind = Kind::kTuple;
      arguments.children = {operands[1], operands[2]};
      operands = {operands[0], add(std::move(arguments))};
    }
    push_new(Kind::kObject, std::move(operands));
  }

  void set_state() {
    const auto state = pop();
    auto& target = nodes_[top()];
    if (target.kind != Kind::kObject) fail("sets the state of a value that is not an object");
    target.state = state;
  }

  void push_stack_global() {
    const auto names = pop_values(2);
    const auto& module = nodes_[names[0]];
    const auto& name = nodes_[names[1]];
    if (module.kind != Kind::kString || name.kind != Kind::kString) fail("names a class without a string");
    push_global(module.text, name.text);
  }

  uint64_t checked_length(int32_t length) const {
    if (length < 0) fail(fmt::format("announces {} bytes", length));
    return static_cast<uint64_t>(length);
  }

  /// False at the end of the pickle.
  bool step(uint8_t opcode) {
    switch (opcode) {
      case kStop:
        return false;
      case kProto:
        if (const auto protocol = take<uint8_t>(); protocol > kHighestProtocol) {
          fail(fmt::format("has protocol {}, at most {} is supported", protocol, kHighestProtocol));
        }
        break;
      case kFrame:
        if (const auto size = take<uint64_t>(); size > pickle_.size() - position_) {
          fail(fmt::format("announces {} bytes, but {} remain; the file is truncated or damaged", size,
                           pickle_.size() - position_));
        }
        break;
      case kMark:
        if (marks_.size() >= kMaxValues) fail(fmt::format("opens more than {} groups", kMaxValues));
        marks_.push_back(stack_.size());
        break;
      case kPop:
        // A mark is what Python takes off where the group is empty.
        if (!marks_.empty() && stack_.size() == marks_.back()) {
          marks_.pop_back();
        } else {
          pop();
        }
        break;
      case kPopMark:
        pop_to_mark();
        break;
      case kDup:
        push(top());
        break;
      case kNone:
        push_new(Kind::kNone);
        break;
      case kNewTrue:
        push_integer(Kind::kBool, 1);
        break;
      case kNewFalse:
        push_integer(Kind::kBool, 0);
        break;
      case kBinInt:
        push_integer(Kind::kInt, take<int32_t>());
        break;
      case kBinInt1:
        push_integer(Kind::kInt, take<uint8_t>());
        break;
      case kBinInt2:
        push_integer(Kind::kInt, take<uint16_t>());
        break;
      case kLong1:
        push_long(take_bytes(take<uint8_t>()));
        break;
      case kLong4:
        push_long(take_bytes(checked_length(take<int32_t>())));
        break;
      case kBinFloat:
        push_float(take<uint64_t>());
        break;
      case kShortBinString:  // Python 2's str
      case kShortBinUnicode:
        push_text(Kind::kString, take_bytes(take<uint8_t>()));
        break;
      case kBinString:
        push_text(Kind::kString, take_bytes(checked_length(take<int32_t>())));
        break;
      case kBinUnicode:
        push_text(Kind::kString, take_bytes(take<uint32_t>()));
        break;
      case kBinUnicode8:
        push_text(Kind::kString, take_bytes(take<uint64_t>()));
        break;
      case kShortBinBytes:
        push_text(Kind::kBytes, take_bytes(take<uint8_t>()));
        break;
      case kBinBytes:
        push_text(Kind::kBytes, take_bytes(take<uint32_t>()));
        break;
      case kBinBytes8:
      case kByteArray8:
        push_text(Kind::kBytes, take_bytes(take<uint64_t>()));
        break;
      case kEmptyList:
        push_new(Kind::kList);
        break;
      case kEmptyTuple:
        push_new(Kind::kTuple);
        break;
      case kEmptyDict:
        push_new(Kind::kDict);
        break;
      case kEmptySet:
        push_new(Kind::kSet);
        break;
      case kTuple:
        push_new(Kind::kTuple, pop_to_mark());
        break;
      case kTuple1:
        push_new(Kind::kTuple, pop_values(1));
        break;
      case kTuple2:
        push_new(Kind::kTuple, pop_values(2));
        break;
      case kTuple3:
        push_new(Kind::kTuple, pop_values(3));
        break;
      case kFrozenSet:
        push_new(Kind::kSet, pop_to_mark());
        break;
      case kAppend:
        add_items(Kind::kList, PickleNode::Items::kValues, pop_values(1));
        break;
      case kAppends:
        add_items(Kind::kList, PickleNode::Items::kValues, pop_to_mark());
        break;
      case kAddItems:
        add_items(Kind::kSet, PickleNode::Items::kValues, pop_to_mark());
        break;
      case kSetItem:
        add_pairs(pop_values(2));
        break;
      case kSetItems:
        add_pairs(pop_to_mark());
        break;
      case kGlobal: {
        const auto module = take_line();
        push_global(module, take_line());
        break;
      }
      case kStackGlobal:
        push_stack_global();
        break;
      case kReduce:
      case kNewObj:
        build_object(2);
        break;
      case kNewObjEx:
        build_object(3);
        break;
      case kBuild:
        set_state();
        break;
      case kBinPersId:
        push_new(Kind::kPersistent, pop_values(1));
        break;
      case kBinGet:
        push(remembered(take<uint8_t>()));
        break;
      case kLongBinGet:
        push(remembered(take<uint32_t>()));
        break;
      case kBinPut:
        put(take<uint8_t>());
        break;
      case kLongBinPut:
        put(take<uint32_t>());
        break;
      case kMemoize:
        put(num_remembered_);
        break;
      default:
        fail(fmt::format("has the instruction 0x{:02x}, which is not supported", opcode));
    }
    return true;
  }

  static constexpr uint32_t kUnset = PickleNode::kNoNode;

  const std::string& where_;
  std::string_view pickle_;
  size_t position_ = 0;
  std::vector<PickleNode> nodes_;
  std::vector<uint32_t> stack_;
  std::vector<size_t> marks_;
  std::vector<uint32_t> memo_;
  size_t num_remembered_ = 0;
  size_t num_values_ = 0;
};

/// Depth first without recursion: a hostile pickle would be as deep as it is long.
class Orderer {
 public:
  Orderer(const std::string& where, PickleGraph& graph)
      : where_(where), graph_(graph), progress_(graph.nodes.size()), depth_(graph.nodes.size()) {}

  void run() {
    open(graph_.root);
    while (!path_.empty()) {
      const auto current = path_.back();
      const auto& node = graph_.nodes[current];
      const size_t next = progress_[current]++ - 1;
      if (next < node.children.size()) {
        visit(node.children[next]);
      } else if (next == node.children.size() && node.state != PickleNode::kNoNode) {
        visit(node.state);
      } else {
        close(current);
      }
    }
  }

 private:
  /// Nodes count from 1 which child comes next, so that 0 is new.
  static constexpr size_t kNew = 0;
  static constexpr size_t kDone = SIZE_MAX;

  void open(uint32_t node) {
    progress_[node] = 1;
    path_.push_back(node);
  }

  void visit(uint32_t node) {
    if (progress_[node] == kNew) {
      open(node);
    } else if (progress_[node] != kDone) {
      throw CheckpointError(fmt::format("[{}] the pickle holds a value that contains itself", where_));
    }
  }

  void close(uint32_t current) {
    const auto& node = graph_.nodes[current];
    uint32_t deepest = node.state == PickleNode::kNoNode ? 0 : depth_[node.state];
    for (const auto child : node.children) deepest = std::max(deepest, depth_[child]);
    depth_[current] = deepest + 1;
    if (depth_[current] > kMaxDepth) {
      throw CheckpointError(fmt::format("[{}] the pickle is nested more than {} deep", where_, kMaxDepth));
    }
    progress_[current] = kDone;
    graph_.order.push_back(current);
    path_.pop_back();
  }

  const std::string& where_;
  PickleGraph& graph_;
  std::vector<size_t> progress_;
  std::vector<uint32_t> depth_;
  std::vector<uint32_t> path_;
};

}  // namespace

PickleGraph read_pickle(const std::string& where, std::string_view pickle) {
  auto graph = Machine(where, pickle).run();
  Orderer(where, graph).run();
  return graph;
}

}  // namespace contrastive::detail

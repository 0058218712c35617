#include "core/unpickler.h"

#include <string>
#include <vector>

#include <fmt/format.h>
#include <gtest/gtest.h>

#include "contrastive/core/error.h"

#include "tests/support/zip.h"

namespace contrastive {
namespace {

using detail::PickleGraph;
using detail::PickleNode;
using detail::read_pickle;
using test::little_endian;
using Kind = PickleNode::Kind;

std::string from_hex(std::string_view hex) {
  std::string bytes;
  for (size_t i = 0; i < hex.size(); i += 2) {
    bytes += static_cast<char>(std::stoi(std::string(hex.substr(i, 2)), nullptr, 16));
  }
  return bytes;
}

/// As Python would print it, but objects as class(arguments).
std::string shown(const PickleGraph& graph, uint32_t index) {
  const auto& node = graph.nodes[index];
  const auto joined = [&](size_t first, const char* separators) {
    std::string text;
    for (size_t i = first; i < node.children.size(); ++i) {
      if (i > first) text += separators[(i - first) % 2 == 0 ? 0 : 1];
      text += shown(graph, node.children[i]);
    }
    return text;
  };
  switch (node.kind) {
    case Kind::kNone:
      return "None";
    case Kind::kBool:
      return node.integer != 0 ? "True" : "False";
    case Kind::kInt:
      return std::to_string(node.integer);
    case Kind::kBigInt:
      return fmt::format("int of {} bytes", node.text.size());
    case Kind::kFloat:
      return fmt::format("{}", node.real);
    case Kind::kString:
      return fmt::format("'{}'", node.text);
    case Kind::kBytes:
      return fmt::format("{} bytes", node.text.size());
    case Kind::kList:
      return "[" + joined(0, ",,") + "]";
    case Kind::kTuple:
      return "(" + joined(0, ",,") + ")";
    case Kind::kSet:
      return "set{" + joined(0, ",,") + "}";
    case Kind::kDict:
      return "{" + joined(0, ",:") + "}";
    case Kind::kGlobal:
      return fmt::format("{}.{}", node.text, node.name);
    case Kind::kPersistent:
      return "outside" + shown(graph, node.children[0]);
    case Kind::kObject: {
      auto text = shown(graph, node.children[0]) + shown(graph, node.children[1]);
      if (node.items != PickleNode::Items::kNone) {
        text += "+[" + joined(2, node.items == PickleNode::Items::kPairs ? ",:" : ",,") + "]";
      }
      return node.state == PickleNode::kNoNode ? text : text + "|" + shown(graph, node.state);
    }
  }
  return "unknown";
}

/// The value of a pickle, or the error without the name of the file.
std::string read(const std::string& pickle) {
  try {
    const auto graph = read_pickle("file.pt", pickle);
    return shown(graph, graph.root);
  } catch (const CheckpointError& error) {
    const std::string message = error.what();
    EXPECT_EQ(message.substr(0, 21), "[file.pt] the pickle ");
    return message.substr(std::min<size_t>(21, message.size()));
  }
}

/// The value of these instructions.
std::string run(const std::string& instructions) {
  return read("\200\002" + instructions + ".");
}

std::string repeated(const std::string& text, size_t count) {
  std::string result;
  result.reserve(text.size() * count);
  for (size_t i = 0; i < count; ++i) result += text;
  return result;
}

// pickle.dumps(v, protocol) of CPython 3.11 for
// v = {"ints": [0, 255, 256, 65535, -1, 70000, 2**31, -2**40, 2**63-1, -2**63, 2**63],
//      "rest": (1.5, None, True, False, "Grüße", b"\000\377", ()), "set": {7}}; v["again"] = v["ints"]
constexpr std::string_view kProtocol2 =
    "80027d7100285804000000696e747371015d7102284b004bff4d00014dffff4affffffff4a701101008a0500000080008a060000000000ff8a"
    "08ffffffffffffff7f8a0800000000000000808a0900000000000000800065580400000072657374710328473ff80000000000004e88895807"
    "0000004772c3bcc39f657104635f636f646563730a656e636f64650a7105580300000000c3bf710658060000006c6174696e31710786710852"
    "71092974710a5803000000736574710b635f5f6275696c74696e5f5f0a7365740a710c5d710d4b076185710e52710f5805000000616761696e"
    "71106802752e";
constexpr std::string_view kProtocol3 =
    "80037d7100285804000000696e747371015d7102284b004bff4d00014dffff4affffffff4a701101008a0500000080008a060000000000ff8a"
    "08ffffffffffffff7f8a0800000000000000808a0900000000000000800065580400000072657374710328473ff80000000000004e88895807"
    "0000004772c3bcc39f657104430200ff71052974710658030000007365747107636275696c74696e730a7365740a71085d71094b076185710a"
    "52710b5805000000616761696e710c6802752e";
constexpr std::string_view kProtocol4 =
    "8004958e000000000000007d94288c04696e7473945d94284b004bff4d00014dffff4affffffff4a701101008a0500000080008a0600000000"
    "00ff8a08ffffffffffffff7f8a0800000000000000808a09000000000000008000658c04726573749428473ff80000000000004e88898c0747"
    "72c3bcc39f6594430200ff942974948c03736574948f94284b07908c05616761696e946802752e";

TEST(UnpicklerTest, ReadsEveryProtocolOfPython) {
  const std::string ints =
      "[0,255,256,65535,-1,70000,2147483648,-1099511627776,9223372036854775807,-9223372036854775808,int of 9 bytes]";
  const auto expected = [&](const std::string& bytes, const std::string& set) {
    return "{'ints':" + ints + ",'rest':(1.5,None,True,False,'Grüße'," + bytes + ",()),'set':" + set +
           ",'again':" + ints + "}";
  };
  // Protocol 2 has no bytes: they are text that would be encoded.
  const auto text = std::string(1, '\0') + "ÿ";
  EXPECT_EQ(read(from_hex(kProtocol2)), expected("_codecs.encode('" + text + "','latin1')", "__builtin__.set([7])"));
  EXPECT_EQ(read(from_hex(kProtocol3)), expected("2 bytes", "builtins.set([7])"));
  EXPECT_EQ(read(from_hex(kProtocol4)), expected("2 bytes", "set{7}"));
  auto protocol5 = from_hex(kProtocol4);
  protocol5[1] = 5;
  EXPECT_EQ(read(protocol5), expected("2 bytes", "set{7}"));
}

TEST(UnpicklerTest, SharesWhatIsRemembered) {
  const auto pickle = from_hex(kProtocol3);
  const auto graph = read_pickle("file.pt", pickle);
  const auto& root = graph.nodes[graph.root];
  EXPECT_EQ(root.children[1], root.children[7]);
  EXPECT_EQ(graph.order.back(), graph.root);
}

TEST(UnpicklerTest, EveryTruncationIsAnError) {
  for (const auto hex : {kProtocol2, kProtocol3, kProtocol4}) {
    const auto whole = from_hex(hex);
    for (size_t size = 0; size < whole.size(); ++size) {
      const auto message = read(whole.substr(0, size));
      ASSERT_TRUE(message.find("truncated or damaged") != std::string::npos) << size << ": " << message;
    }
  }
  EXPECT_EQ(read(""), "ends after 0 bytes, 1 more were announced; the file is truncated or damaged (byte 0)");
}

TEST(UnpicklerTest, EveryDamagedByteIsReadOrRefused) {
  for (const auto hex : {kProtocol2, kProtocol4}) {
    const auto whole = from_hex(hex);
    for (size_t i = 0; i < whole.size(); ++i) {
      for (int value = 0; value < 256; ++value) {
        auto damaged = whole;
        damaged[i] = static_cast<char>(value);
        read(damaged);  // anything but CheckpointError would end the test
      }
    }
  }
}

TEST(UnpicklerTest, OnlyDescribesWhatWouldRun) {
  // What pickle.loads would run: os.system("touch /tmp/pwned"), in three spellings.
  EXPECT_EQ(run("cos\nsystem\n(X" + little_endian(16, 4) + "touch /tmp/pwnedtR"), "os.system('touch /tmp/pwned')");
  EXPECT_EQ(run("X" + little_endian(2, 4) + "osX" + little_endian(6, 4) + "system\223)R"), "os.system()");
  EXPECT_EQ(run("c__builtin__\neval\n(U\001xt\201}b"), "__builtin__.eval('x')|{}");
  EXPECT_EQ(run("cargparse\nNamespace\n)\201}(U\002lrK\001ub"), "argparse.Namespace()|{'lr':1}");
  EXPECT_EQ(run("cm\nc\n)R(K\001K\002e"), "m.c()+[1,2]");
  EXPECT_EQ(run("cm\nc\n)RK\001a"), "m.c()+[1]");
  EXPECT_EQ(run("cm\nc\n)RK\001K\002s"), "m.c()+[1:2]");
  EXPECT_EQ(run("cm\nc\n)}\222"), "m.c((),{})");
  EXPECT_EQ(run("K\005Q"), "outside5");
}

TEST(UnpicklerTest, RefusesInstructionsOfOtherProtocols) {
  EXPECT_EQ(read("I1\n."), "has the instruction 0x49, which is not supported (byte 1)");
  EXPECT_EQ(run("(ios\nsystem\n"), "has the instruction 0x69, which is not supported (byte 4)");
  EXPECT_EQ(run("\202\001"), "has the instruction 0x82, which is not supported (byte 3)");
  EXPECT_EQ(run("\227"), "has the instruction 0x97, which is not supported (byte 3)");
  EXPECT_EQ(read("\200\006N."), "has protocol 6, at most 5 is supported (byte 2)");
}

TEST(UnpicklerTest, RefusesLengthsBeyondTheEnd) {
  const auto ends = [](const std::string& more, const std::string& at) {
    return "ends after " + at + " bytes, " + more + " more were announced; the file is truncated or damaged";
  };
  EXPECT_EQ(run("X" + little_endian(0xFFFFFFFF, 4)), ends("4294967294", "8") + " (byte 7)");
  EXPECT_EQ(run("\215" + little_endian(UINT64_MAX, 8)), ends("18446744073709551614", "12") + " (byte 11)");
  EXPECT_EQ(run("\216" + little_endian(UINT64_MAX, 8)), ends("18446744073709551614", "12") + " (byte 11)");
  EXPECT_EQ(run("B" + little_endian(2, 4)), ends("1", "8") + " (byte 7)");
  EXPECT_EQ(run("\212\377"), ends("254", "5") + " (byte 4)");
  EXPECT_EQ(run("\213" + little_endian(0x7FFFFFFF, 4)), ends("2147483646", "8") + " (byte 7)");
  EXPECT_EQ(run("\213" + little_endian(0xFFFFFFFF, 4)), "announces -1 bytes (byte 7)");
  EXPECT_EQ(run("T" + little_endian(0x80000000, 4)), "announces -2147483648 bytes (byte 7)");
  EXPECT_EQ(run("\225" + little_endian(2, 8)),
            "announces 2 bytes, but 1 remain; the file is truncated or damaged (byte 11)");
  EXPECT_EQ(run("cos"), "ends within a name; the file is truncated or damaged (byte 3)");
}

TEST(UnpicklerTest, RefusesMissingOperands) {
  const std::string empty = "takes a value from an empty stack";
  EXPECT_EQ(run(""), empty + " (byte 3)");
  for (const auto* instructions :
       {"R",   "\201", "NR", "a",    "]a",   "s",     "}Ns",  "b",    "Nb",      "0",     "2",
        "q\1", "\224", "Q",  "\205", "\206", "N\206", "\207", "\223", "(N(\205", "N(\206"}) {
    EXPECT_EQ(run(instructions).substr(0, empty.size()), empty) << instructions;
  }
  for (const auto* instructions : {"t", "e", "u", "1", "\220", "\221"}) {
    EXPECT_EQ(run(instructions), "closes a group that was not opened (byte 3)") << instructions;
  }
  EXPECT_EQ(run("(("), empty + " (byte 5)");
  EXPECT_EQ(run("N(0"), "None");
}

TEST(UnpicklerTest, RefusesWrongOperands) {
  EXPECT_EQ(run("NNa"), "adds items to a value that can't hold them (byte 5)");
  EXPECT_EQ(run(")Na"), "adds items to a value that can't hold them (byte 5)");
  EXPECT_EQ(run("](NNu"), "adds items to a value that can't hold them (byte 7)");
  EXPECT_EQ(run("}(Nu"), "adds a key without a value (byte 6)");
  EXPECT_EQ(run("cm\nc\n)RK\001aNNs"), "adds items to a value that can't hold them (byte 15)");
  EXPECT_EQ(run("cm\nc\nNR"), "makes an object with arguments that are not a tuple (byte 9)");
  EXPECT_EQ(run("NNb"), "sets the state of a value that is not an object (byte 5)");
  EXPECT_EQ(run("NN\223"), "names a class without a string (byte 5)");
  EXPECT_EQ(run("c" + std::string(600, 'm') + "\nc\n"), "names a class with 601 bytes (byte 606)");
}

TEST(UnpicklerTest, RefusesTheUnrememberedAndTheUnreachable) {
  EXPECT_EQ(run("h\005"), "asks for value number 5, which was not remembered (byte 4)");
  EXPECT_EQ(run("Nq\002h\001"), "asks for value number 1, which was not remembered (byte 7)");
  EXPECT_EQ(run("j" + little_endian(0xFFFFFFFF, 4)),
            "asks for value number 4294967295, which was not remembered (byte 7)");
  EXPECT_EQ(run("Nr" + little_endian(0xFFFFFFFF, 4)),
            "remembers a value as number 4294967295, which can't be (byte 8)");
  EXPECT_EQ(run("Nq\011"), "remembers a value as number 9, which can't be (byte 5)");
  EXPECT_EQ(run("Nq\003h\003\206"), "(None,None)");
}

TEST(UnpicklerTest, RefusesValuesThatContainThemselves) {
  const std::string itself = "holds a value that contains itself";
  EXPECT_EQ(run("]q\001h\001a"), itself);
  EXPECT_EQ(run("]q\001(h\001\205e"), itself);
  EXPECT_EQ(run("}q\001Nh\001s"), itself);
  EXPECT_EQ(run("]q\001]q\002h\001aa0h\001"), itself);
  EXPECT_EQ(run("]q\001]q\002h\001aah\002"), itself);
  EXPECT_EQ(run("cm\nc\n)Rq\001h\001b"), itself);
  EXPECT_EQ(run("cm\nc\n)Rq\001h\001a"), itself);
  // A cycle that the result does not need does no harm.
  EXPECT_EQ(run("]q\001h\001a0N"), "None");
}

TEST(UnpicklerTest, RefusesDeepNestingWithoutRecursion) {
  constexpr size_t kDeep = 500'000;
  EXPECT_EQ(run("N" + repeated("\205", 255)), repeated("(", 255) + "None" + repeated(")", 255));
  EXPECT_EQ(run("N" + repeated("\205", 256)), "is nested more than 256 deep");
  EXPECT_EQ(run("N" + repeated("\205", kDeep)), "is nested more than 256 deep");
  EXPECT_EQ(run(repeated("]", kDeep) + repeated("a", kDeep - 1)), "is nested more than 256 deep");
  EXPECT_EQ(run(repeated("(", kDeep) + repeated("t", kDeep)), "is nested more than 256 deep");
  EXPECT_EQ(run("(" + repeated("(", 2'500'000)), "opens more than 2000000 groups (byte 2000003)");
}

TEST(UnpicklerTest, BoundsTheNumberOfValues) {
  const std::string more = "makes more than 2000000 values";
  EXPECT_EQ(run("(" + repeated(")", 2'500'000) + "t").substr(0, more.size()), more);
  EXPECT_EQ(run("N" + repeated("2", 2'500'000)).substr(0, more.size()), more);
  EXPECT_EQ(run("N" + repeated("20", 2'500'000)).substr(0, more.size()), more);
}

TEST(UnpicklerTest, ABillionLaughsStaySmall) {
  // Each list holds the one before ten times.
  std::string instructions = "]q\001";
  for (int i = 2; i < 100; ++i) {
    const std::string before(1, static_cast<char>(i - 1)), now(1, static_cast<char>(i));
    instructions += "](" + repeated("h" + before, 10) + "eq" + now;
  }
  const auto pickle = "\200\002" + instructions + ".";
  const auto graph = read_pickle("file.pt", pickle);
  EXPECT_EQ(graph.nodes.size(), 99u);
  EXPECT_EQ(graph.order.size(), 99u);
}

}  // namespace
}  // namespace contrastive

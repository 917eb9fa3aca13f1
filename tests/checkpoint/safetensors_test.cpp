// Safetensors files: what Python's safetensors wrote is read, and written again byte for byte; it refuses
// what the real one refuses; damaged files give an error or the content that was written.
#include <fulmen/checkpoint/archive.hpp>
#include <fulmen/checkpoint/module_state.hpp>
#include <fulmen/checkpoint/safetensors.hpp>
#include <fulmen/checkpoint/state.hpp>

#include <gtest/gtest.h>
#include <nlohmann/json.hpp>
#include <torch/torch.h>

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <map>
#include <random>
#include <set>
#include <stdexcept>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "testing.hpp"

namespace fulmen {
namespace {

using ::fulmen::testing::contents;
using ::fulmen::testing::error_of;
using ::fulmen::testing::fixture;
using ::fulmen::testing::put;
using ::fulmen::testing::same;
using ::fulmen::testing::TemporaryFolder;

using Metadata = std::map<std::string, std::string>;

// The twin of Tied in tests/fixtures/checkpoint/make.py.
struct Tied : torch::nn::Module {
  at::Tensor weight = at::zeros({4, 3});

  Tied() {
    const auto encoder = register_module("encoder", std::make_shared<torch::nn::Module>());
    const auto decoder = register_module("decoder", std::make_shared<torch::nn::Module>());
    encoder->register_parameter("weight", weight);
    decoder->register_parameter("weight", weight);
    register_buffer("part", weight.detach().slice(0, 1, 3));
    register_buffer("turned", at::zeros({2, 3}).t());
  }
};

class SafetensorsTest : public ::testing::Test {
 protected:
  // A file with this header, its size before it and this many bytes behind it.
  static std::string with_header(const std::string& header, std::size_t bytes = 0) {
    const std::uint64_t size = header.size();
    std::string file(reinterpret_cast<const char*>(&size), sizeof size);
    file += header;
    for (std::size_t i = 0; i < bytes; ++i) file += static_cast<char>(i + 1);
    return file;
  }

  // The message for these bytes, without the file's name; empty if they were read.
  std::string error_of_file(std::string_view bytes) {
    put(file, bytes);
    std::string text = error_of<std::runtime_error>([&] { read = checkpoint::read_safetensors(file); });
    if (text.empty()) return text;
    const std::string head = "cannot read safetensors file '" + file.string() + "': ";
    EXPECT_EQ(text.find(head), 0u) << text;
    EXPECT_EQ(text.find('\n'), std::string::npos) << text;
    EXPECT_LT(text.size(), head.size() + 310) << text;
    return text.substr(std::min(head.size(), text.size()));
  }

  std::string error_of_writing(const State& tensors) {
    return error_of<std::invalid_argument>([&] { checkpoint::write_safetensors(file, tensors); });
  }

  TemporaryFolder folder = TemporaryFolder::in_memory();
  std::filesystem::path file = folder / "a.safetensors";
  checkpoint::Safetensors read;
};

TEST_F(SafetensorsTest, ReadsWhatPythonWrote) {
  const checkpoint::Safetensors python = checkpoint::read_safetensors(fixture("dtypes.safetensors"));
  EXPECT_EQ(python.metadata, (Metadata{{"who", "Thor \u26a1 \"\\\n\x01"}}));
  const std::vector<std::pair<const char*, at::ScalarType>> dtypes = {
      {"float64", at::kDouble},
      {"float32", at::kFloat},
      {"float16", at::kHalf},
      {"bfloat16", at::kBFloat16},
      {"int64", at::kLong},
      {"int32", at::kInt},
      {"int16", at::kShort},
      {"int8", at::kChar},
      {"uint8", at::kByte},
      {"bool", at::kBool},
      {"uint64", at::kUInt64},
      {"uint32", at::kUInt32},
      {"uint16", at::kUInt16},
      {"float8_e4m3fn", at::kFloat8_e4m3fn},
      {"float8_e5m2", at::kFloat8_e5m2},
      {"float8_e4m3fnuz", at::kFloat8_e4m3fnuz},
      {"float8_e5m2fnuz", at::kFloat8_e5m2fnuz},
      {"float8_e8m0fnu", at::kFloat8_e8m0fnu},
      {"complex64", at::kComplexFloat}};
  EXPECT_EQ(python.tensors.size(), dtypes.size() + 3);
  for (const auto& [name, dtype] : dtypes) {
    const auto tensor = python.tensors.get<at::Tensor>(name);
    EXPECT_EQ(tensor.scalar_type(), dtype) << name;
    EXPECT_TRUE(same(tensor, at::tensor({1.f, 2.f, 0.5f}).to(dtype))) << name;
  }
  EXPECT_TRUE(same(python.tensors.get<at::Tensor>("scalar"), at::scalar_tensor(7.f)));
  EXPECT_TRUE(same(python.tensors.get<at::Tensor>("empty"), at::zeros({0, 3})));
  EXPECT_TRUE(same(python.tensors.get<at::Tensor>("na\"me\n\u00e9"), at::arange(6).view({2, 3})));
}

TEST_F(SafetensorsTest, WritesTheBytesThatPythonWrites) {
  const checkpoint::Safetensors python = checkpoint::read_safetensors(fixture("dtypes.safetensors"));
  State reversed;
  const std::vector<std::string> names = python.tensors.keys();
  for (std::size_t i = names.size(); i-- > 0;)
    reversed.set(names[i], python.tensors.get<at::Tensor>(names[i]));
  checkpoint::write_safetensors(file, reversed, python.metadata);
  EXPECT_TRUE(contents(file) == contents(fixture("dtypes.safetensors")));
  checkpoint::write_safetensors(file, State());
  EXPECT_EQ(contents(file), with_header("{}      "));
}

TEST_F(SafetensorsTest, KeepsOneOfTensorsThatOverlapAsSaveModelDoes) {
  Tied module;
  load_module_state(module, State(checkpoint::read(fixture("tied.pt"))));
  checkpoint::write_safetensors(file, module);
  const checkpoint::Safetensors python = checkpoint::read_safetensors(fixture("tied.safetensors"));
  const checkpoint::Safetensors ours = checkpoint::read_safetensors(file);
  EXPECT_EQ(ours.metadata, python.metadata);
  EXPECT_EQ(ours.metadata, (Metadata{{"encoder.weight", "decoder.weight"}, {"part", "decoder.weight"}}));
  EXPECT_TRUE(same(ours.tensors, python.tensors));
  EXPECT_EQ(contents(file).size(), contents(fixture("tied.safetensors")).size());
  // It has the other names, too.
  Tied again;
  const KeyMismatch mismatch = load_module_state(again, ours.tensors);
  EXPECT_TRUE(mismatch.missing.empty());
  EXPECT_TRUE(same(module_state(again), module_state(module)));
  // The user's metadata come first.
  checkpoint::write_safetensors(file, module, {{"part", "mine"}});
  EXPECT_EQ(checkpoint::read_safetensors(file).metadata.at("part"), "mine");

  struct Parts : torch::nn::Module {
    Parts() {
      const at::Tensor whole = at::zeros(4);
      register_buffer("a", whole.slice(0, 0, 3));
      register_buffer("b", whole.slice(0, 2, 4));
    }
  };
  EXPECT_EQ(
      error_of<std::invalid_argument>([&] { checkpoint::write_safetensors(file, Parts()); }),
      "cannot write safetensors file '" + file.string() +
          "': 'a', 'b' overlap in memory, and none of them covers its whole storage, expected one that does");
}

TEST_F(SafetensorsTest, WritesViewsWhole) {
  const at::Tensor base = at::arange(12).to(at::kFloat).view({3, 4});
  State state;
  state.set("turned", base.t()).set("half", at::arange(8).slice(0, 0, 8, 2));
  state.set("expanded", at::tensor({5.f}).expand(3)).set("parameter", at::ones(2).requires_grad_());
  state.set("conj", at::view_as_complex(at::tensor({1.f, 2.f})).conj());
  checkpoint::write_safetensors(file, state);
  const State back = checkpoint::read_safetensors(file).tensors;
  for (const std::string& name : state.keys()) {
    EXPECT_TRUE(same(back.get<at::Tensor>(name), state.get<at::Tensor>(name))) << name;
  }
  EXPECT_FALSE(back.get<at::Tensor>("parameter").requires_grad());
}

TEST_F(SafetensorsTest, RefusesWhatTheFormatHasNot) {
  const std::string head = "cannot write safetensors file '" + file.string() + "': ";
  put(file, "before");
  EXPECT_EQ(error_of_writing(State().set("lr", 0.1)), head + "'lr' is a number, expected a tensor");
  EXPECT_EQ(error_of_writing(State().set("t", at::Tensor())),
            head + "'t' is an undefined tensor, expected a tensor");
  EXPECT_EQ(error_of_writing(State().set(3, at::ones(1))), head + "a key is no string");
  EXPECT_EQ(error_of_writing(State().set("__metadata__", at::ones(1))),
            head + "a tensor cannot be called '__metadata__'");
  EXPECT_EQ(error_of_writing(State().set("\xff", at::ones(1))), head + "the name '\xff' is not UTF-8");
  EXPECT_EQ(error_of_writing(State().set("z", at::ones(1, at::kComplexDouble))),
            head + "'z' is a tensor of dtype ComplexDouble, which the format has not");
  EXPECT_EQ(error_of_writing(State().set("s", at::eye(2).to_sparse())),
            head + "'s' is a tensor that is sparse, quantized, nested or without data, expected a dense one");
  const at::Tensor whole = at::zeros(4);
  EXPECT_EQ(error_of_writing(State().set("a", whole).set("b", whole.slice(0, 1, 2)).set("c", at::ones(1))),
            head +
                "'a', 'b' overlap in memory, expected tensors of their own: clone them, or write the module, "
                "of which "
                "one of them is kept");
  EXPECT_EQ(error_of<std::invalid_argument>([&] {
              checkpoint::write_safetensors(file, State(), {{"k", "\xff"}});
            }),
            head + "the metadata 'k' is not UTF-8");
  EXPECT_EQ(contents(file), "before");
  // Side by side is not overlapping.
  EXPECT_EQ(error_of_writing(State().set("a", whole.slice(0, 0, 2)).set("b", whole.slice(0, 2, 4))), "");
  EXPECT_NE(
      error_of<std::runtime_error>([&] { checkpoint::write_safetensors(folder / "no" / "x", State()); }), "");
}

TEST_F(SafetensorsTest, ReadsAndRefusesWhatTheRealOneDoes) {
  std::ifstream in(fixture("safetensors.json"));
  const auto cases = nlohmann::json::parse(in);
  const auto unhex = [](const std::string& hex) {
    std::string bytes;
    for (std::size_t i = 0; i < hex.size(); i += 2)
      bytes += static_cast<char>(std::stoi(hex.substr(i, 2), nullptr, 16));
    return bytes;
  };
  // The format's page rules these out, and safetensors reads them.
  const std::string one = R"({"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}})";
  const std::set<std::string> stricter = {
      with_header(" " + one, 4),
      with_header(R"({"a":{"dtype":"F32","shape":[1],"more":1,"data_offsets":[0,4]}})", 4),
      with_header(one.substr(0, one.size() - 1) + "," + one.substr(1), 4),
      with_header(R"({"__metadata__":null})"),
      with_header(R"({"__metadata__":{"k":"v","k":"w"}})"),
      with_header(R"({"a":["F32",[1],[0,4]]})", 4),
  };
  std::size_t accepted = 0, refused = 0, strict = 0;
  for (const auto& one_case : cases) {
    const std::string bytes = unhex(one_case["file"]);
    const std::string error = error_of_file(bytes);
    if (stricter.contains(bytes)) {
      EXPECT_TRUE(one_case.contains("tensors") && !error.empty()) << bytes;
      ++strict;
    } else if (one_case.contains("error")) {
      EXPECT_NE(error, "") << bytes;
      ++refused;
    } else {
      ASSERT_EQ(error, "") << bytes;
      ASSERT_EQ(read.tensors.size(), one_case["tensors"].size()) << bytes;
      for (const auto& [name, expected] : one_case["tensors"].items()) {
        const auto tensor = read.tensors.get<at::Tensor>(name);
        EXPECT_EQ(tensor.sizes().vec(), expected["shape"].get<std::vector<std::int64_t>>()) << bytes;
        const std::string data = unhex(expected["bytes"]);
        ASSERT_EQ(tensor.nbytes(), data.size());
        EXPECT_TRUE(data.empty() || std::memcmp(tensor.const_data_ptr(), data.data(), data.size()) == 0)
            << bytes;
      }
      ++accepted;
    }
  }
  EXPECT_EQ(strict, stricter.size());
  EXPECT_GT(accepted, 15u);
  EXPECT_GT(refused, 60u);
}

TEST_F(SafetensorsTest, MessagesSayWhatIsWrong) {
  EXPECT_EQ(error_of_file(""), "it has 0 bytes, expected at least the 8 of the header's size");
  EXPECT_NE(error_of_file(contents(fixture("model.pt"))).find("it is no safetensors file"),
            std::string::npos);
  EXPECT_EQ(error_of_file(with_header("{}", 1)), "1 bytes follow the header, expected the 0 of its tensors");
  EXPECT_EQ(error_of_file(with_header(R"({"a":{"dtype":"F4","shape":[8],"data_offsets":[0,4]}})", 4)),
            "tensor 'a' has the dtype 'F4', which is not supported");
  EXPECT_EQ(error_of_file(with_header(R"({"a":{"dtype":"F32","shape":[3,2],"data_offsets":[0,4]}})", 4)),
            "tensor 'a' of dtype F32 and shape [3, 2] has 4 bytes, expected 24");
  EXPECT_EQ(error_of_file(with_header(R"({"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}})", 3)),
            "tensor 'a' is at 0 to 4, expected it to begin at 0 and to end at 3 at the latest");
  EXPECT_EQ(error_of_file(with_header(R"({"a":{"dtype":"F32","shape":[1],"data_offsets":[4,8]}})", 8)),
            "tensor 'a' is at 4 to 8, expected it to begin at 0 and to end at 8 at the latest");
  EXPECT_EQ(error_of_file(
                with_header(R"({"a":{"dtype":"F32","shape":[0,9223372036854775807],"data_offsets":[0,0]}})")),
            "tensor 'a' has more than 2^63 bytes by its shape");
  EXPECT_EQ(error_of_file(with_header(R"({"a" 1})")), "its header has no ':' at byte 5");
  // A bool is 0 or 1 in C++, whatever the file has.
  EXPECT_EQ(error_of_file(with_header(R"({"a":{"dtype":"BOOL","shape":[2],"data_offsets":[0,2]}})", 2)), "");
  EXPECT_TRUE(same(read.tensors.get<at::Tensor>("a"), at::ones(2, at::kBool)));
  EXPECT_NE(error_of<std::runtime_error>([&] {
              checkpoint::read_safetensors(folder / "none");
            }).find("No such file"),
            std::string::npos);
}

TEST_F(SafetensorsTest, TruncatedFilesAreErrors) {
  const std::string whole = contents(fixture("dtypes.safetensors"));
  for (std::size_t size = 0; size < whole.size(); ++size)
    ASSERT_NE(error_of_file(whole.substr(0, size)), "") << size;
  EXPECT_EQ(error_of_file(whole), "");
}

// There is no checksum: bits of the data may flip unseen, but nothing else may change, and nothing crash.
TEST_F(SafetensorsTest, FlippedBits) {
  const std::string whole = contents(fixture("dtypes.safetensors"));
  std::uint64_t header = 0;
  std::memcpy(&header, whole.data(), sizeof header);
  ASSERT_EQ(error_of_file(whole), "");
  const checkpoint::Safetensors expected = read;
  std::size_t found = 0;
  for (std::size_t bit = 0; bit < whole.size() * 8; ++bit) {
    std::string damaged = whole;
    damaged[bit / 8] = static_cast<char>(damaged[bit / 8] ^ 1 << bit % 8);
    const bool fails = !error_of_file(damaged).empty();
    found += fails;
    if (fails) continue;
    ASSERT_EQ(read.tensors.size(), expected.tensors.size()) << bit;
    if (bit / 8 < 8 + header) continue;  // a name, or a dtype of the same size
    for (const std::string& name : expected.tensors.keys()) {
      const auto tensor = read.tensors.get<at::Tensor>(name), before = expected.tensors.get<at::Tensor>(name);
      ASSERT_TRUE(tensor.scalar_type() == before.scalar_type() && tensor.sizes().equals(before.sizes()))
          << bit;
    }
  }
  EXPECT_GT(found, header * 4);
  std::mt19937 random(0);
  for (int i = 0; i < 3000; ++i) {
    std::string damaged = whole;
    for (int k = 0; k < 1 + i % 8; ++k) {
      damaged[random() % (i % 2 == 0 ? header + 8 : whole.size())] = static_cast<char>(random());
    }
    error_of_file(damaged);
  }
}

}  // namespace
}  // namespace fulmen

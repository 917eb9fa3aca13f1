// Checkpoint files: what is written is read again, what Python wrote is read, what no checkpoint holds is
// refused.
#include <fulmen/checkpoint/archive.hpp>
#include <fulmen/checkpoint/crc32.hpp>
#include <fulmen/checkpoint/module_state.hpp>
#include <fulmen/checkpoint/pickle.hpp>
#include <fulmen/checkpoint/state.hpp>

#include <gtest/gtest.h>
#include <torch/torch.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <stdexcept>
#include <string>
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
using ::testing::Test;

c10::IValue tuple(std::vector<c10::IValue> items) { return c10::ivalue::Tuple::create(std::move(items)); }

c10::IValue list(std::vector<c10::IValue> items) {
  c10::impl::GenericList result(c10::AnyType::get());
  for (auto& item : items) result.push_back(std::move(item));
  return result;
}

class Archive : public Test {
 protected:
  c10::IValue round_trip(const c10::IValue& value) const {
    checkpoint::write(folder / "a.pt", value);
    return checkpoint::read(folder / "a.pt");
  }

  std::string write_error(const c10::IValue& value) const {
    return error_of<std::invalid_argument>([&] { checkpoint::write(folder / "a.pt", value); });
  }

  std::string read_error(const std::filesystem::path& path) const {
    return error_of<std::runtime_error>([&] { checkpoint::read(path); });
  }

  TemporaryFolder folder;
};

TEST(Crc32, AgreesWithTheTableAtEveryLengthAndInPieces) {
  std::string text(1000, '\0');
  for (std::size_t i = 0; i < text.size(); ++i) text[i] = static_cast<char>(i * i * 31 + i);
  EXPECT_EQ(checkpoint::detail::crc32(0, "123456789", 9), 0xCBF43926u);  // the check value of the algorithm
  for (std::size_t size = 0; size <= text.size(); ++size) {
    const auto* data = reinterpret_cast<const unsigned char*>(text.data());
    const auto expected = ~checkpoint::detail::crc32_by_table(~0u, data, size);
    ASSERT_EQ(checkpoint::detail::crc32(0, data, size), expected) << size;
    const std::size_t half = size / 3;
    ASSERT_EQ(checkpoint::detail::crc32(checkpoint::detail::crc32(0, data, half), data + half, size - half),
              expected);
  }
}

TEST_F(Archive, KeepsScalarsStringsAndContainers) {
  c10::impl::GenericDict keys(c10::AnyType::get(), c10::AnyType::get());
  keys.insert("s", std::int64_t{1});
  keys.insert(std::int64_t{7}, "seven");
  keys.insert(2.5, true);
  keys.insert(false, c10::IValue());
  const auto max = std::numeric_limits<std::int64_t>::max();
  const c10::IValue value = list({c10::IValue(),
                                  true,
                                  false,
                                  std::int64_t{0},
                                  std::int64_t{255},
                                  std::int64_t{256},
                                  std::int64_t{65535},
                                  std::int64_t{65536},
                                  std::int64_t{-1},
                                  std::int64_t{1} << 31,
                                  -(std::int64_t{1} << 31),
                                  -(std::int64_t{1} << 31) - 1,
                                  max,
                                  -max - 1,
                                  0.1,
                                  -0.0,
                                  std::nan(""),
                                  std::numeric_limits<double>::infinity(),
                                  c10::complex<double>(1, -2),
                                  "",
                                  "Thor \u26a1 \U0001f40d",
                                  std::string("\xff\x00\x80z", 4),
                                  std::string("\xff\x00\x80z", 4),
                                  std::string("\xed\xa0\x80", 3),
                                  std::string(1000, 'x'),
                                  c10::Device("cuda:1"),
                                  c10::Device("cpu"),
                                  tuple({}),
                                  tuple({std::int64_t{1}}),
                                  tuple({"a", tuple({2.0, list({})}), list({std::int64_t{1}})}),
                                  keys});
  EXPECT_TRUE(same(round_trip(value), value));
}

TEST_F(Archive, KeepsTypedListsAndDicts) {
  c10::Dict<std::string, std::int64_t> dict;
  dict.insert("a", 1);
  const c10::IValue back =
      round_trip(list({c10::List<std::int64_t>({1, 2}), dict, c10::List<at::Tensor>({at::ones(1)})}));
  EXPECT_EQ(back.toListRef()[0].toListRef()[1].toInt(), 2);
  EXPECT_EQ(back.toListRef()[1].toGenericDict().at("a").toInt(), 1);
  EXPECT_TRUE(back.toListRef()[2].toListRef()[0].toTensor().equal(at::ones(1)));
}

TEST_F(Archive, KeepsWhatIsShared) {
  const c10::IValue inner = list({std::int64_t{1}});
  const at::Tensor tensor = at::arange(3);
  const c10::IValue pair = tuple({inner, tensor});
  const c10::IValue back = round_trip(list({inner, inner, pair, pair, tensor}));
  const auto items = back.toListRef();
  EXPECT_TRUE(items[0].is(items[1]));
  EXPECT_TRUE(items[2].is(items[3]));
  EXPECT_TRUE(items[2].toTupleRef().elements()[0].is(items[0]));
  EXPECT_TRUE(items[4].is(items[2].toTupleRef().elements()[1]));
}

TEST_F(Archive, KeepsMoreThan256DifferentThings) {
  State state;
  for (int i = 0; i < 700; ++i)
    state.set("key" + std::to_string(i), std::vector<std::string>{std::to_string(i % 300)});
  EXPECT_TRUE(same(round_trip(state), state));
}

TEST_F(Archive, KeepsEveryDtype) {
  for (const auto dtype : {at::kFloat,
                           at::kDouble,
                           at::kHalf,
                           at::kBFloat16,
                           at::kLong,
                           at::kInt,
                           at::kShort,
                           at::kChar,
                           at::kByte,
                           at::kBool,
                           at::kComplexFloat,
                           at::kComplexDouble,
                           at::kComplexHalf,
                           at::kUInt16,
                           at::kUInt32,
                           at::kUInt64,
                           at::kFloat8_e4m3fn,
                           at::kFloat8_e5m2,
                           at::kFloat8_e4m3fnuz,
                           at::kFloat8_e5m2fnuz}) {
    const at::Tensor tensor = at::tensor({0.f, 1.f, 1.f, 0.f, 1.f}).to(dtype);
    EXPECT_TRUE(same(round_trip(tensor), tensor)) << c10::toString(dtype);
  }
}

TEST_F(Archive, KeepsShapesAndLayouts) {
  const at::Tensor images = at::randn({2, 3, 4, 5}).contiguous(at::MemoryFormat::ChannelsLast);
  const std::vector<at::Tensor> tensors = {
      at::scalar_tensor(3.5),
      at::zeros({0}),
      at::zeros({3, 0, 2}),
      at::randn({3, 4}).t(),
      at::randn({3, 4})[1],
      at::randn({8, 6}).slice(1, 2, 4),
      at::randn({5}).expand({3, 5}),
      images,
      at::randn({4, 4}).diagonal(),
      at::randn({6}).slice(0, 1, 6, 2),
      at::view_as_complex(at::randn({3, 2})).conj(),
      at::imag(at::view_as_complex(at::randn({3, 2})).conj()),
      at::arange(10).slice(0, 10),
      at::zeros({0}).expand({7, 0}),
  };
  for (const at::Tensor& tensor : tensors) EXPECT_TRUE(same(round_trip(tensor), tensor)) << tensor.sizes();
  EXPECT_EQ(round_trip(images).toTensor().strides(), images.strides());
  EXPECT_EQ(round_trip(tensors[3]).toTensor().strides(), tensors[3].strides());
  EXPECT_TRUE(round_trip(tensors[5]).toTensor().is_contiguous());  // it had gaps
}

TEST_F(Archive, KeepsAnUndefinedTensorAsNone) { EXPECT_TRUE(round_trip(at::Tensor()).isNone()); }

TEST_F(Archive, WritesParametersDetachedAndLeavesThemAlone) {
  const at::Tensor parameter = at::randn({3}).requires_grad_();
  const at::Tensor result = parameter * 2;
  EXPECT_FALSE(round_trip(parameter).toTensor().requires_grad());
  EXPECT_TRUE(same(round_trip(result), result.detach()));
  EXPECT_TRUE(parameter.requires_grad());
}

TEST_F(Archive, KeepsTensorsThatOverlapOverlapping) {
  const at::Tensor base = at::arange(12).to(at::kFloat);
  const c10::IValue back =
      round_trip(list({base.slice(0, 4, 12), base.view({3, 4})[1], base.slice(0, 0, 2)}));
  const at::Tensor upper = back.toListRef()[0].toTensor();
  const at::Tensor row = back.toListRef()[1].toTensor();
  const at::Tensor lower = back.toListRef()[2].toTensor();
  row.fill_(-1);
  EXPECT_TRUE(upper.equal(at::tensor({-1.f, -1.f, -1.f, -1.f, 8.f, 9.f, 10.f, 11.f})));
  // They were views of one storage and share no element: no need to keep them together.
  EXPECT_FALSE(lower.storage().is_alias_of(upper.storage()));
}

TEST_F(Archive, KeepsViewsOfOtherDtypesOverlapping) {
  const at::Tensor whole = at::arange(8).to(at::kFloat);
  const at::Tensor bits = whole.slice(0, 3, 8).view(at::kInt);
  const c10::IValue back = round_trip(list({whole.slice(0, 1, 6), bits}));
  const at::Tensor floats = back.toListRef()[0].toTensor();
  const at::Tensor ints = back.toListRef()[1].toTensor();
  EXPECT_TRUE(same(floats, whole.slice(0, 1, 6)));
  EXPECT_TRUE(same(ints, bits));
  ints.zero_();
  EXPECT_EQ(floats[2].item<float>(), 0.f);
}

TEST_F(Archive, WritesOnlyWhatIsCovered) {
  const at::Tensor huge = at::randn({1000, 1000});
  const auto size_of = [&](const c10::IValue& value) {
    EXPECT_TRUE(same(round_trip(value), value));
    return std::filesystem::file_size(folder / "a.pt");
  };
  EXPECT_LT(size_of(huge[500]), 10'000u);                                     // a row
  EXPECT_LT(size_of(huge.select(1, 500)), 10'000u);                           // a column
  EXPECT_LT(size_of(list({huge[0], huge[999]})), 15'000u);                    // two rows far apart
  EXPECT_LT(size_of(list({huge.select(1, 5), huge.select(1, 5)})), 10'000u);  // one column twice
}

TEST_F(Archive, IsTheSameFileEachTime) {
  State state;
  state.set("w", at::arange(5)).set("n", 3);
  checkpoint::write(folder / "a.pt", state);
  const std::string first = contents(folder / "a.pt");
  checkpoint::write(folder / "a.pt", state);
  EXPECT_EQ(contents(folder / "a.pt"), first);
  EXPECT_EQ(folder.count(), 1);
}

TEST_F(Archive, RefusesWhatNoCheckpointHolds) {
  State state;
  state.set("a", State().set("b", std::vector<at::Tensor>{at::ones(1), at::eye(2).to_sparse()}));
  const std::string prefix = "cannot write checkpoint '" + (folder / "a.pt").string() + "': ";
  EXPECT_EQ(
      write_error(state),
      prefix +
          "'a.b.1' is a tensor that is sparse, quantized, nested or without a storage, expected a dense one");
  EXPECT_EQ(write_error(at::empty({2}, at::kMeta)),
            prefix + "the value is a tensor on the meta device, which holds no data");
  EXPECT_EQ(write_error(at::quantize_per_tensor(at::ones(2), 1, 0, at::kQInt8)),
            prefix +
                "the value is a tensor that is sparse, quantized, nested or without a storage, expected a "
                "dense one");
  EXPECT_EQ(write_error(list({at::empty({2}, at::kBits8)})),
            prefix + "'0' is a tensor of dtype Bits8, which a checkpoint cannot hold");
  EXPECT_EQ(write_error(list({c10::Scalar(1), c10::Storage()})).substr(0, prefix.size()), prefix);
  EXPECT_EQ(folder.count(), 0);
}

TEST_F(Archive, RefusesWhatContainsItself) {
  const c10::IValue loop = list({});
  loop.toList().push_back(tuple({loop}));
  EXPECT_NE(write_error(list({loop})).find("'0.0.0' is a container that contains itself"), std::string::npos);
  loop.toList().clear();  // or it would be leaked
}

// Through what is shared too: a destructor goes all the way down.
TEST_F(Archive, CountsDepthThroughSharedValues) {
  std::vector<c10::IValue> parts;
  c10::IValue value = list({});
  for (int i = 1; i <= 600; ++i) {
    value = list({value});
    if (i % 100 == 0) parts.push_back(value);
  }
  EXPECT_NE(write_error(list(parts)).find("nested more than 500 deep"), std::string::npos);
}

TEST_F(Archive, RefusesWhatIsNestedTooDeep) {
  c10::IValue value = list({});
  for (int i = 0; i < 500; ++i) value = list({value});
  EXPECT_TRUE(same(round_trip(value), value));
  value = list({value});
  EXPECT_NE(write_error(value).find("nested more than 500 deep"), std::string::npos);
}

// ---- What Python wrote: tests/fixtures/checkpoint/make.py

TEST_F(Archive, ReadsEverythingThatPythonWrites) {
  const State values(checkpoint::read(fixture("values.pt")), "values.pt");
  EXPECT_TRUE(values.get<c10::IValue>("none").isNone());
  EXPECT_TRUE(values.get<bool>("yes"));
  EXPECT_FALSE(values.get<bool>("no"));
  const std::int64_t one = 1;
  EXPECT_EQ(values.get<std::vector<std::int64_t>>("ints"),
            (std::vector<std::int64_t>{0, 1, 255, 256, 65535, 65536, -1, -(one << 31), one << 31, one << 40,
                                       -(one << 40), std::numeric_limits<std::int64_t>::max(),
                                       std::numeric_limits<std::int64_t>::min()}));
  EXPECT_EQ(values.get<std::vector<double>>("floats"),
            (std::vector<double>{0.0, -0.5, 1e300, std::numeric_limits<double>::infinity()}));
  EXPECT_EQ(values.get<std::string>("text"), "Thor \u26a1 \U0001f40d");
  EXPECT_EQ(values.get<std::string>("bytes"), std::string("\x00\xff\x80"
                                                          "abc",
                                                          6));
  EXPECT_EQ(values.get<std::string>("no_bytes"), "");
  EXPECT_EQ(values.get<std::string>("bytearray"), "\x01\xfe");
  EXPECT_EQ(values.get<c10::IValue>("complex").toComplexDouble(), c10::complex<double>(1.5, -2));
  EXPECT_TRUE(same(values.get<c10::IValue>("tuple"), tuple({one, "a", tuple({2.5, c10::IValue()})})));
  EXPECT_EQ(values.get<c10::IValue>("empty").toListRef().size(), 3u);
  EXPECT_EQ(values.get<std::vector<int>>("set"), std::vector<int>{7});
  const auto nested = values.get<State>("nested").get<State>("a").get<std::vector<State>>(1);
  EXPECT_EQ(nested.at(0).get<at::Tensor>("b").item<int>(), 3);
  EXPECT_EQ(values.get<State>("keys").get<std::string>(0), "int");
  EXPECT_EQ(values.get<State>("keys").dict().at(2.5).toStringRef(), "float");
  EXPECT_EQ(values.get<State>("ordered").keys(), (std::vector<std::string>{"first", "second"}));
  EXPECT_EQ(values.get<State>("counter").get<int>("a"), 2);
  EXPECT_EQ(values.get<std::vector<int>>("size"), (std::vector<int>{2, 3}));
  EXPECT_EQ(values.get<c10::IValue>("device").toDevice(), c10::Device("cuda:1"));
  EXPECT_EQ(values.get<c10::IValue>("cpu").toDevice(), c10::Device("cpu"));
  EXPECT_EQ(values.get<c10::IValue>("dtype").toScalarType(), at::kBFloat16);

  EXPECT_TRUE(values.get<at::Tensor>("parameter").requires_grad());
  EXPECT_TRUE(same(values.get<at::Tensor>("parameter"), at::tensor({1.f, 2.f})));
  EXPECT_FALSE(values.get<at::Tensor>("frozen").requires_grad());
  const at::Tensor base = at::arange(12).to(at::kFloat);
  EXPECT_TRUE(same(values.get<at::Tensor>("base"), base));
  EXPECT_TRUE(same(values.get<at::Tensor>("row"), base.view({3, 4})[1]));
  EXPECT_TRUE(same(values.get<at::Tensor>("transposed"), base.view({3, 4}).t()));
  EXPECT_TRUE(values.get<at::Tensor>("row").storage().is_alias_of(values.get<at::Tensor>("base").storage()));
  EXPECT_TRUE(same(values.get<at::Tensor>("expanded"), at::tensor({5.f, 5.f, 5.f})));
  EXPECT_TRUE(same(values.get<at::Tensor>("nothing"), at::zeros({0, 3})));
  EXPECT_TRUE(same(values.get<at::Tensor>("scalar"), at::scalar_tensor(-7, at::kLong)));
  const auto twice = values.get<std::vector<at::Tensor>>("same");
  EXPECT_TRUE(twice.at(0).is_same(twice.at(1)));
  EXPECT_EQ(values.get<at::Tensor>("conj").item<c10::complex<float>>(), c10::complex<float>(1, -2));
  EXPECT_EQ(values.get<at::Tensor>("neg").item<float>(), -2.f);
  EXPECT_EQ(values.get<at::Tensor>("storage").numel(), 8);

  const State dtypes = values.get<State>("dtypes");
  EXPECT_EQ(dtypes.size(), 18u);
  for (const std::string& name : dtypes.keys()) {
    const at::Tensor tensor = dtypes.get<at::Tensor>(name);
    EXPECT_EQ(checkpoint::detail::dtype_name(tensor.scalar_type()), name);
    EXPECT_TRUE(same(tensor, at::tensor({0.f, 1.f, 1.f}).to(tensor.scalar_type()))) << name;
  }

  // And what has been read can be written.
  EXPECT_TRUE(same(round_trip(values), values));
}

TEST_F(Archive, ReadsTheOtherPickleProtocols) {
  const State expected(checkpoint::read(fixture("values.pt")));
  for (const char* name : {"protocol3.pt", "protocol4.pt", "protocol5.pt"}) {
    const State values(checkpoint::read(fixture(name)), name);
    EXPECT_EQ(values.size(), 9u);
    for (const std::string& key : values.keys()) {
      EXPECT_TRUE(same(values.get<c10::IValue>(key), expected.get<c10::IValue>(key))) << name << " " << key;
    }
  }
}

TEST_F(Archive, ReadsManyValuesAndFilesWithoutCrc) {
  const State values(checkpoint::read(fixture("long.pt")));
  const auto items = values.get<std::vector<int>>("list");
  ASSERT_EQ(items.size(), 2500u);
  EXPECT_EQ(items[2499], 2499);
  EXPECT_EQ(values.get<State>("dict").size(), 1200u);
  EXPECT_EQ(values.get<State>("dict").get<std::vector<int>>("key1199").at(0), 1199);
  EXPECT_TRUE(
      same(State(checkpoint::read(fixture("nocrc.pt"))).get<at::Tensor>("w"), at::arange(4).to(at::kFloat)));
}

// The twin of Net in make.py.
struct Net : torch::nn::Module {
  torch::nn::Sequential features;
  torch::nn::Linear head{torch::nn::LinearOptions(3, 2).bias(false)};
  at::Tensor scale, shift;

  Net() : features(torch::nn::Conv2d(1, 3, 3), torch::nn::BatchNorm2d(3), torch::nn::ReLU()) {
    register_module("features", features);
    register_module("head", head);
    scale = register_parameter("scale", at::zeros(1));
    shift = register_buffer("shift", at::zeros(1));
  }

  at::Tensor forward(const at::Tensor& x) {
    return head(features->forward(x).mean(at::IntArrayRef{2, 3})) * scale + shift;
  }
};

TEST_F(Archive, ReadsAModelOfPythonThatAnswersTheSame) {
  const State file(checkpoint::read(fixture("model.pt")), "model.pt");
  Net net;
  load_module_state(net, file.get<State>("model"));
  net.eval();
  const at::Tensor answer = file.get<at::Tensor>("answer");
  EXPECT_EQ((net.forward(file.get<at::Tensor>("input")) - answer).abs().max().item<float>(), 0.f);
  EXPECT_EQ(module_state(net).keys(), file.get<std::vector<std::string>>("names"));
  const State optimizer = file.get<State>("optimizer");
  EXPECT_EQ(optimizer.get<State>("state").get<State>(0).get<at::Tensor>("step").item<float>(), 3.f);
  EXPECT_EQ(optimizer.get<std::vector<State>>("param_groups").at(0).get<std::vector<double>>("betas"),
            (std::vector<double>{0.9, 0.999}));
}

TEST_F(Archive, SaysWhatItCannotRead) {
  const auto error = [&](std::string_view name) {
    const std::string text = read_error(fixture(name));
    const std::string prefix = "cannot read checkpoint '" + fixture(name).string() + "': ";
    EXPECT_EQ(text.substr(0, prefix.size()), prefix);
    EXPECT_EQ(text.find('\n'), std::string::npos) << text;
    return text.substr(std::min(prefix.size(), text.size()));
  };
  EXPECT_EQ(error("absent.pt"), "No such file or directory");
  EXPECT_EQ(error(""), "it is a folder");
  EXPECT_EQ(error("legacy.pt"),
            "it is in the legacy format of torch.save (before PyTorch 1.6, or "
            "_use_new_zipfile_serialization=False): load it in Python and torch.save it again");
  EXPECT_EQ(
      error("torchscript.pt"),
      "it is a TorchScript archive (torch.jit.save, or torch::save of C++): read it with torch::jit::load or "
      "torch::load");
  EXPECT_EQ(error("not_torch.zip"), "it is a zip archive without data.pkl, not a checkpoint of torch.save");
  EXPECT_EQ(error("deflated.pt"),
            "record 'byteorder' is compressed, expected it stored as it is, as torch.save does");
  EXPECT_EQ(error("whole_module.pt").substr(0, 35), "its pickle holds a torch.nn.modules");
  EXPECT_EQ(error("sparse.pt").substr(0, 49), "its pickle holds a torch.serialization._get_layou");
  EXPECT_EQ(error("big_int.pt"), "its pickle holds an integer that does not fit into 64 bits");
  EXPECT_EQ(error("loop.pt"), "its pickle holds a container that contains itself");
  EXPECT_EQ(error("make.py"), "it is not a zip archive, expected a checkpoint of torch.save");

  put(folder / "empty.pt", "");
  EXPECT_NE(read_error(folder / "empty.pt").find("the file is empty"), std::string::npos);
  put(folder / "plain.pkl", "\x80\x04}.");
  EXPECT_NE(read_error(folder / "plain.pkl").find("a plain Python pickle"), std::string::npos);
  put(folder / "x.safetensors", std::string("\x02\0\0\0\0\0\0\0{}", 10));
  EXPECT_NE(read_error(folder / "x.safetensors").find("safetensors"), std::string::npos);
  EXPECT_EQ(read_error("/dev/zero"), "cannot read checkpoint '/dev/zero': it is not a regular file");
}

}  // namespace
}  // namespace fulmen

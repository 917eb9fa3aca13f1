// Tests predict/patches.hpp and predict/pad.hpp: against MONAI (fixtures/predict), identity to the bit, errors.
#include "../testing.hpp"

#include <fulmen/predict/pad.hpp>
#include <fulmen/predict/patches.hpp>
#include <fulmen/predict/predictor.hpp>

#include <torch/torch.h>

#include <nlohmann/json.hpp>

#include <gtest/gtest.h>

#include <cmath>
#include <fstream>
#include <limits>
#include <string>
#include <tuple>
#include <vector>

namespace {

using namespace fulmen;
using nlohmann::json;

const json& fixtures() {
  static const json all = json::parse(std::ifstream(FULMEN_TEST_DATA_DIR "/predict/sliding_window.json"));
  return all;
}

/// Tensor t of fixtures/predict/README.md.
at::Tensor formula(int t, const std::vector<std::int64_t>& shape, double scale = 1) {
  return (((at::arange(c10::multiply_integers(shape), at::kDouble) * 0.7 + (1.0 + 3.0 * t)).sin()) * scale)
      .view(shape);
}

at::Tensor values(const json& numbers, const json& shape) {
  return at::tensor(numbers.get<std::vector<double>>(), at::kDouble)
      .view(shape.get<std::vector<std::int64_t>>());
}

/// A number for all axes, or one for each.
template <class T, std::size_t Dim>
PerAxis<T, Dim> per_axis(const json& option) {
  PerAxis<T, Dim> all;
  for (std::size_t i = 0; i < Dim; ++i)
    all.values[i] = option.is_array() ? option[i].get<T>() : option.get<T>();
  return all;
}

PadMode pad_mode(const std::string& name) {
  return name == "reflect" ? PadMode::reflect : name == "replicate" ? PadMode::replicate : PadMode::constant;
}

template <std::size_t Dim>
Patches<Dim> patches_of(const json& o) {
  Patches<Dim> p{.size = per_axis<std::int64_t, Dim>(o["roi_size"]), .batch_size = o["sw_batch_size"]};
  if (o.contains("overlap")) p.overlap = per_axis<double, Dim>(o["overlap"]);
  if (o.contains("sigma_scale")) p.sigma_scale = per_axis<double, Dim>(o["sigma_scale"]);
  if (o.value("mode", "constant") == "gaussian") p.weights = PatchWeights::gaussian;
  p.padding_mode = pad_mode(o.value("padding_mode", "constant"));
  p.padding_value = o.value("cval", 0.0);
  return p;
}

template <std::size_t Dim>
void check_case(const json& c) {
  const auto shape = c["shape"].get<std::vector<std::int64_t>>();
  std::vector<std::int64_t> kernel{c["channels"], shape[1]};
  kernel.resize(Dim + 2, 3);
  const at::Tensor weight = formula(1, kernel, 0.1),
                   bias = formula(2, {c["channels"].get<std::int64_t>()}, 0.1);
  std::vector<std::int64_t> calls;
  const at::Tensor found = run(patches_of<Dim>(c["options"]), formula(0, shape), [&](const at::Tensor& x) {
    calls.push_back(x.size(0));
    const std::int64_t stride = c["stride"];
    if constexpr (Dim == 2)
      return at::conv2d(x, weight, bias, stride, 1);
    else
      return at::conv3d(x, weight, bias, stride, 1);
  });
  const at::Tensor expected = values(c["result"], c["result_shape"]);
  EXPECT_EQ(calls, c["calls"].get<std::vector<std::int64_t>>());
  ASSERT_EQ(found.sizes(), expected.sizes());
  // MONAI's Gaussian weights are float32, its file has ten decimals.
  const double tolerance = c["options"].value("mode", "") == "gaussian" ? 1e-7 : 1e-9;
  EXPECT_LT((found - expected).abs().max().item<double>(), tolerance);
}

TEST(Patches, GiveWhatMonaisSlidingWindowsGive) {
  ASSERT_GE(fixtures()["cases"].size(), 10U);
  for (const json& c : fixtures()["cases"]) {
    SCOPED_TRACE(c["name"].get<std::string>());
    if (c["shape"].size() == 4)
      check_case<2>(c);
    else
      check_case<3>(c);
  }
}

const auto same = [](const at::Tensor& x) { return x; };

/// Identity to the bit with any overlap, weights and batch size, of odd sizes, for images smaller than the patch too.
template <std::size_t Dim>
void check_identity(const std::vector<std::int64_t>& shape, at::ScalarType type) {
  const at::Tensor x = (at::randn(shape) * 10).to(type);
  for (const std::int64_t size : {1, 3, 4, 7, 16}) {
    for (const double overlap : {0.0, 0.25, 0.5, 0.9}) {
      for (const PatchWeights weights :
           {PatchWeights::constant, PatchWeights::gaussian, PatchWeights::linear}) {
        const std::int64_t batch_size = 1 + size % 3;
        Patches<Dim> p{.size = size, .overlap = overlap, .batch_size = batch_size, .weights = weights};
        p.size.values[0] = size + 1;
        const at::Tensor y = run(p, x, same);
        ASSERT_TRUE(y.equal(x)) << "size " << size << ", overlap " << overlap << ", weights "
                                << static_cast<int>(weights);
        ASSERT_EQ(y.scalar_type(), type);
      }
    }
  }
}

TEST(Patches, AreIdentityToTheBitWhateverOverlapAndWeights) {
  torch::manual_seed(1);
  check_identity<1>({2, 3, 29}, at::kFloat);
  check_identity<2>({2, 3, 13, 17}, at::kFloat);
  check_identity<2>({1, 1, 12, 9}, at::kDouble);
  check_identity<2>({1, 2, 11, 8}, at::kHalf);
  check_identity<2>({1, 2, 11, 8}, at::kBFloat16);
  check_identity<3>({2, 1, 7, 9, 8}, at::kFloat);
}

TEST(Patches, LeaveInfinitiesAsTheyAre) {
  const double inf = std::numeric_limits<double>::infinity();
  const at::Tensor x =
      at::tensor({1.0, -inf, 2.0, inf, -inf, -inf, 3.0, 4.0, inf}, at::kFloat).view({1, 1, 3, 3});
  EXPECT_TRUE(run(Patches<2>{.size = 2, .stride = 1, .weights = PatchWeights::gaussian}, x, same).equal(x));
}

// A patch's own number, so that each result says how the patches were weighed.
struct Numbers {
  double next = 0;
  at::Tensor operator()(const at::Tensor& x) {
    at::Tensor y = at::empty_like(x);
    for (std::int64_t i = 0; i < x.size(0); ++i) y[i] = next++;
    return y;
  }
};

TEST(Patches, AreWeighedWhereTheyOverlap) {
  const at::Tensor x = at::zeros({1, 1, 7}, at::kDouble);
  const auto weighed = [&](Patches<1> p) { return run(p, x, Numbers{}).flatten(); };
  const auto are = [](const at::Tensor& found, const std::vector<double>& expected) {
    EXPECT_TRUE(found.allclose(at::tensor(expected, at::kDouble), 1e-14, 0)) << found;
  };
  // Patches 0-3, 2-5 and, moved back to the end, 3-6.
  are(weighed({.size = 4, .stride = 2}), {0, 0, 0.5, 1, 1.5, 1.5, 2});
  // 1 2 2 1 along each.
  are(weighed({.size = 4, .stride = 2, .weights = PatchWeights::linear}),
      {0, 0, 1 / 3., (0 * 1 + 1 * 2 + 2 * 1) / 4., 1.5, (1 * 1 + 2 * 2) / 3., 2});
  const double a = std::exp(-1.5 * 1.5 / 2), b = std::exp(-0.5 * 0.5 / 2);  // sigma 1
  are(weighed({.size = 4, .stride = 2, .weights = PatchWeights::gaussian, .sigma_scale = 0.25}),
      {0, 0, a / (a + b), (b + 2 * a) / (a + b + a), 1.5, (a + 2 * b) / (a + b), 2});
  // Gaussian weights below 0.001 are 0.001.
  are(weighed({.size = 4, .stride = 3, .weights = PatchWeights::gaussian, .sigma_scale = 0.05}),
      {0, 0, 0, 0.5, 1, 1, 1});
  are(weighed({.size = 4, .stride = 3, .weight_map = at::tensor({3.0, 1.0, 1.0, 1.0})}),
      {0, 0, 0, 0.75, 1, 1, 1});
  // Without overlap any type will do.
  const at::Tensor labels = run(Patches<1>{.size = 4, .overlap = 0}, at::arange(8).view({1, 1, 8}), same);
  EXPECT_TRUE(labels.equal(at::arange(8).view({1, 1, 8})));
}

TEST(Patches, PredictionsMayHaveOtherChannelsAndSizes) {
  const at::Tensor x = at::arange(2 * 3 * 8 * 12, at::kFloat).view({2, 3, 8, 12});
  Patches<2> p{.size = {4, 6}, .overlap = {0.5, 2 / 3.}, .batch_size = 3, .weights = PatchWeights::gaussian};
  // Every second pixel of one channel; each pixel twice. Of the first, a patch must begin at an even pixel.
  const at::Tensor halves = run(p, x, [](const at::Tensor& t) {
    return t.slice(1, 0, 1).slice(2, 0, std::nullopt, 2).slice(3, 0, std::nullopt, 2);
  });
  EXPECT_TRUE(halves.equal(x.slice(1, 0, 1).slice(2, 0, std::nullopt, 2).slice(3, 0, std::nullopt, 2)));
  const auto twice = [](const at::Tensor& t) { return t.repeat_interleave(2, 2).repeat_interleave(2, 3); };
  EXPECT_TRUE(run(p, x, twice).equal(twice(x)));
  p.stride = {4, 5};
  EXPECT_EQ(error_of([&] { run(p, x, [](const at::Tensor& t) { return t.slice(3, 0, std::nullopt, 2); }); }),
            "Patches: the prediction has 3 pixels along an axis where its input has 6, so pixel 5 of the "
            "input falls between two "
            "of the prediction, expected a multiple of 2: choose stride, size and image accordingly "
            "(PadToMultiple pads an image)");
  const at::Tensor odd = at::rand({1, 1, 11, 13});
  EXPECT_TRUE(run(PadToMultiple<2>{.multiple = 4, .symmetric = false} | Patches<2>{.size = 8, .stride = 4},
                  odd, twice)
                  .equal(twice(odd)));
}

TEST(Patches, InputsAndPredictionsMayBeSeveralTensors) {
  const at::Tensor image = at::rand({2, 1, 6, 7}), mask = at::rand({2, 3, 6, 7});
  const std::tuple inputs{image, mask};
  const auto swapped =
      run(Patches<2>{.size = 4, .batch_size = 5}, inputs, [](const std::tuple<at::Tensor, at::Tensor>& in) {
        return std::pair(std::get<1>(in), std::get<0>(in) * 2);
      });
  EXPECT_TRUE(swapped.first.equal(mask));
  EXPECT_TRUE(swapped.second.equal(image * 2));
  EXPECT_EQ(std::get<0>(inputs).sizes(), image.sizes());
  at::Tensor small = at::rand({2, 1, 2, 2}), original = small;
  const at::Tensor sum = run(Patches<2>{.size = 4}, std::tie(small, small),
                             [](const auto& in) { return std::get<0>(in) + std::get<1>(in); });
  EXPECT_TRUE(sum.equal(small + small));
  EXPECT_TRUE(small.is_same(original)) << "the caller's tensors are not replaced by padded ones";
  EXPECT_EQ(error_of([&] {
              run(Patches<2>{.size = 4}, std::tuple(image, at::rand({2, 3, 6, 8})),
                  [](const auto& in) { return std::get<0>(in); });
            }),
            "Patches: the inputs have shapes [2, 1, 6, 7] and [2, 3, 6, 8], expected the same samples and "
            "spatial sizes");
}

TEST(Patches, AreCutOneCallAtATime) {
  const at::Tensor volume = at::rand({1, 1, 12, 12, 12});
  std::vector<c10::weak_intrusive_ptr<at::TensorImpl>> seen;
  std::size_t most = 0;
  for (const std::int64_t batch_size : {1, 4}) {
    seen.clear();
    const at::Tensor y =
        run(Patches<3>{.size = 4, .overlap = 0.5, .batch_size = batch_size}, volume, [&](at::Tensor x) {
          seen.emplace_back(x.getIntrusivePtr());
          at::Tensor prediction = x * 2;
          seen.emplace_back(prediction.getIntrusivePtr());
          std::size_t alive = 0;
          for (const auto& pointer : seen) alive += !pointer.expired();
          most = std::max(most, alive);
          return prediction;
        });
    EXPECT_TRUE(y.equal(volume * 2));
    EXPECT_EQ(seen.size(), 2U * (batch_size == 1 ? 125 : 32));
    EXPECT_EQ(most, 2U) << "one patch and its prediction";
  }
  // One patch alone is a view: nothing is copied to cut it.
  run(Patches<3>{.size = 4}, volume, [&](at::Tensor x) {
    EXPECT_TRUE(x.is_alias_of(volume));
    return x;
  });
}

TEST(Patches, SayWhatIsWrong) {
  const at::Tensor x = at::rand({1, 1, 8, 9});
  const auto with = [&](Patches<2> p, const at::Tensor& input) {
    return error_of([&] { run(p, input, same); });
  };
  EXPECT_EQ(with({.size = 4}, at::rand({8, 9})),
            "Patches<2>: the input has shape [8, 9], expected 4 dimensions (N, C, then 2 spatial ones), none "
            "of size 0");
  EXPECT_EQ(with({.size = 4}, at::rand({1, 1, 8, 9, 10})),
            "Patches<2>: the input has shape [1, 1, 8, 9, 10], expected 4 dimensions (N, C, then 2 spatial "
            "ones), none of size 0");
  EXPECT_EQ(with({.size = 4}, at::rand({0, 1, 8, 9})),
            "Patches<2>: the input has shape [0, 1, 8, 9], expected 4 dimensions (N, C, then 2 spatial "
            "ones), none of size 0");
  EXPECT_EQ(with({.size = 4}, {}),
            "Patches<2>: the input is an undefined tensor, expected 4 dimensions (N, C, then 2 spatial "
            "ones), none of size 0");
  EXPECT_EQ(with({}, x), "Patches: size is 0 along axis 0, expected at least 1, or -1 for all of the image");
  EXPECT_EQ(
      with({.size = {4, 10}, .padding_mode = std::nullopt}, x),
      "Patches: the patch is 10 along axis 1 and the image 9, expected a patch that fits, or a padding_mode");
  EXPECT_EQ(with({.size = 4, .overlap = {0.5, 1}}, x),
            "Patches: overlap is 1 along axis 1, expected a part of the patch: at least 0 and below 1");
  EXPECT_EQ(with({.size = 4, .overlap = {-0.5, 0}}, x),
            "Patches: overlap is -0.5 along axis 0, expected a part of the patch: at least 0 and below 1");
  EXPECT_EQ(with({.size = 4, .stride = PerAxis<std::int64_t, 2>{4, 5}}, x),
            "Patches: stride is 5 along axis 1, expected 1 to 4, the patch's size: a longer one leaves gaps");
  EXPECT_EQ(with({.size = 4, .batch_size = 0}, x), "Patches: batch_size is 0, expected at least 1");
  EXPECT_EQ(with({.size = 4, .weights = PatchWeights::gaussian, .sigma_scale = {1, 0}}, x),
            "Patches: sigma_scale is 0 along axis 1, expected more than 0");
  EXPECT_EQ(with({.size = 4, .weight_map = at::zeros({4, 4})}, x),
            "Patches: weight_map has shape [4, 4] and a smallest weight of 0, expected shape [4, 4], the "
            "prediction's, and "
            "weights above 0");
  EXPECT_EQ(with({.size = {20, 4}, .padding_mode = PadMode::reflect}, at::rand({1, 1, 6, 8})),
            "Patches: axis 0 of size 6 must be padded by 7, reflect padding can do at most 5; expected "
            "PadMode::constant or "
            "PadMode::replicate");
  EXPECT_EQ(with({.size = 4}, at::zeros({1, 1, 8, 8}, at::kLong)),
            "Patches with overlap: predictions are of type Long, expected floating-point ones: averages of "
            "others mean nothing");
  const auto inferred = [&](auto infer) {
    return error_of([&] { run(Patches<2>{.size = {4, 3}, .batch_size = 2}, x, infer); });
  };
  EXPECT_EQ(inferred([](const at::Tensor& t) { return t.flatten(1); }),
            "Patches<2>: infer gave a prediction of shape [2, 12], expected 4 dimensions (N, C, then 2 "
            "spatial ones)");
  EXPECT_EQ(inferred([](const at::Tensor& t) { return t.slice(0, 1); }),
            "Patches: infer gave a prediction of shape [1, 1, 4, 3] for 2 patches, expected [2, 1, 4, 3]");
  EXPECT_EQ(inferred([n = 0](const at::Tensor& t) mutable { return n++ ? t.slice(2, 1) : t; }),
            "Patches: infer gave a prediction of shape [2, 1, 3, 3] for 2 patches, expected [2, 1, 4, 3]");
  EXPECT_EQ(
      inferred([n = 0](const at::Tensor& t) mutable { return std::vector<at::Tensor>(n++ ? 3 : 2, t); }),
      "Patches: a prediction holds 3 tensors, expected 2");
  EXPECT_THROW(run(Patches<2>{.size = 4}, at::rand({8, 9}), same), std::invalid_argument);
  EXPECT_THROW(run(Patches<2>{.size = 4}, x, [](const at::Tensor& t) { return t.flatten(1); }),
               std::runtime_error);
}

template <std::size_t Dim>
void check_pad(const json& p) {
  auto shape = p["shape"].get<std::vector<std::int64_t>>(),
       padded_shape = p["padded_shape"].get<std::vector<std::int64_t>>();
  const at::Tensor x = formula(0, shape).unsqueeze(0),
                   expected = values(p["padded"], p["padded_shape"]).unsqueeze(0);
  const PadToMultiple<Dim> pad{.multiple = per_axis<std::int64_t, Dim>(p["k"]), .mode = pad_mode(p["mode"])};
  at::Tensor padded;
  const at::Tensor y = run(pad, x, [&](const at::Tensor& t) {
    padded = t;
    return at::cat({t, t * 2}, 1);
  });
  ASSERT_EQ(padded.sizes(), expected.sizes());
  EXPECT_LT((padded - expected).abs().max().item<double>(), 1e-9);
  EXPECT_TRUE(y.equal(at::cat({x, x * 2}, 1)));
}

TEST(PadToMultiple, PadsAsMonaisDivisiblePadAndCropsBack) {
  ASSERT_GE(fixtures()["pads"].size(), 3U);
  for (const json& p : fixtures()["pads"]) {
    if (p["shape"].size() == 3)
      check_pad<2>(p);
    else
      check_pad<3>(p);
  }
  const at::Tensor x = at::rand({2, 1, 7, 8});
  at::Tensor padded;
  const auto see = [&](const at::Tensor& t) {
    padded = t;
    return t;
  };
  EXPECT_TRUE(run(PadToMultiple<2>{.multiple = {4, 8}, .value = 3, .symmetric = false}, x, see).equal(x));
  EXPECT_TRUE(padded.equal(at::constant_pad_nd(x, {0, 0, 0, 1}, 3)));
  EXPECT_TRUE(run(PadToMultiple<2>{.multiple = {7, 4}}, x, see).is_same(padded))
      << "nothing to do, nothing done";
  EXPECT_TRUE(padded.is_alias_of(x));
  EXPECT_TRUE(run(PadToMultiple<2>{.multiple = 5, .mode = PadMode::circular}, x, see).equal(x));
}

TEST(PadToMultiple, SaysWhatIsWrong) {
  const at::Tensor x = at::rand({1, 1, 7, 8});
  const auto halves = [](const at::Tensor& t) { return t.slice(2, 0, std::nullopt, 2); };
  EXPECT_EQ(error_of([&] { run(PadToMultiple<2>{.multiple = 0}, x, same); }),
            "PadToMultiple: multiple is 0 along axis 0, expected at least 1");
  EXPECT_EQ(error_of([&] { run(PadToMultiple<3>{.multiple = 2}, x, same); }),
            "PadToMultiple<3>: the input has shape [1, 1, 7, 8], expected 5 dimensions (N, C, then 3 spatial "
            "ones), none of size 0");
  EXPECT_EQ(error_of([&] { run(PadToMultiple<2>{.multiple = 4}, x, halves); }),
            "PadToMultiple: the prediction has 4 pixels along an axis where its input has 8, so pixel 7 of "
            "the input falls between "
            "two of the prediction, expected a multiple of 2: pad at the end alone (.symmetric = false), or "
            "an image of other size");
  EXPECT_EQ(error_of([&] {
              run(PadToMultiple<2>{.multiple = 4}, x, [](const at::Tensor& t) { return t.flatten(1); });
            }),
            "PadToMultiple<2>: infer gave a prediction of shape [1, 64], expected 4 dimensions (N, C, then 2 "
            "spatial ones)");
  EXPECT_EQ(
      error_of([&] {
        run(PadToMultiple<2>{.multiple = 4}, std::tuple(x, at::rand({1, 1, 8, 8})),
            [](const auto& in) { return std::get<0>(in); });
      }),
      "PadToMultiple: the inputs have shapes [1, 1, 7, 8] and [1, 1, 8, 8], expected the same spatial sizes");
}

}  // namespace

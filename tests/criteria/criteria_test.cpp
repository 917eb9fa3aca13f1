// Tests criteria/: values and gradients against PyTorch (fixtures/criteria), messages, weighted sums and what
// a Trainer logs.
#include "../testing.hpp"

#include <fulmen/callbacks/metric_monitor.hpp>
#include <fulmen/criteria/criteria.hpp>
#include <fulmen/data/tensor_loader.hpp>
#include <fulmen/optim/sgd.hpp>
#include <fulmen/trainer.hpp>

#include <torch/torch.h>

#include <nlohmann/json.hpp>

#include <gtest/gtest.h>

#include <fstream>
#include <map>
#include <set>
#include <string>
#include <tuple>
#include <utility>
#include <vector>

namespace {

using namespace fulmen;
using nlohmann::json;

const json& fixtures() {
  static const json all = json::parse(std::ifstream(FULMEN_TEST_DATA_DIR "/criteria/criteria.json"));
  return all;
}

/// A tensor of the file, floating-point ones in the dtype.
at::Tensor tensor(const json& place, at::ScalarType dtype) {
  const json& entry = fixtures()["tensors"][place.get<std::size_t>()];
  const at::Tensor flat = at::tensor(entry["values"].get<std::vector<double>>(), at::kDouble);
  return flat.view(entry["shape"].get<std::vector<std::int64_t>>())
      .to(entry["integer"].get<bool>() ? at::kLong : dtype);
}

/// Largest difference, relative to the largest element expected.
double distance(const at::Tensor& found, const json& expected) {
  const at::Tensor want = at::tensor(expected.get<std::vector<double>>(), at::kDouble);
  const at::Tensor got = found.detach().to(at::kDouble).flatten();
  EXPECT_EQ(got.numel(), want.numel());
  const double scale = want.abs().max().item<double>();
  return (got - want).abs().max().item<double>() / (scale > 0 ? scale : 1);
}

/// Gives a criterion the options of a run. Each must be taken: one that is not known is an error of the test.
struct Options {
  const json& run;
  at::ScalarType dtype;
  std::set<std::string> taken{};

  template <class T>
  void take(const char* name, T& option) {
    if (!run["options"].contains(name)) return;
    taken.insert(name);
    if constexpr (std::is_same_v<T, at::Tensor>)
      option = tensor(run["options"][name], dtype);
    else
      option = run["options"][name].get<T>();
  }
};

template <class R>
void set_reduction(R& reduction, const std::string& name) {
  if (name == "mean")
    reduction = R::mean;
  else if (name == "sum")
    reduction = R::sum;
  else if (name == "none")
    reduction = R::none;
  else if constexpr (std::is_same_v<R, KLDivReduction>)
    reduction = R::batchmean;
}

template <class Criterion>
Criterion configure(const json& run, at::ScalarType dtype, Criterion c = {}) {
  Options options{run, dtype};
  set_reduction(c.reduction, run["reduction"]);
  if constexpr (requires { c.weight; }) options.take("weight", c.weight);
  if constexpr (requires { c.pos_weight; }) options.take("pos_weight", c.pos_weight);
  if constexpr (requires { c.ignore_index; }) options.take("ignore_index", c.ignore_index);
  if constexpr (requires { c.label_smoothing; }) options.take("label_smoothing", c.label_smoothing);
  if constexpr (requires { c.p; }) options.take("p", c.p);
  if constexpr (requires { c.margin; }) options.take("margin", c.margin);
  if constexpr (requires { c.beta; }) options.take("beta", c.beta);
  if constexpr (requires { c.delta; }) options.take("delta", c.delta);
  if constexpr (requires { c.log_input; }) options.take("log_input", c.log_input);
  if constexpr (requires { c.full; }) options.take("full", c.full);
  if constexpr (requires { c.eps; }) options.take("eps", c.eps);
  if constexpr (requires { c.log_target; }) options.take("log_target", c.log_target);
  if constexpr (requires { c.swap; }) options.take("swap", c.swap);
  if constexpr (requires { c.blank; }) options.take("blank", c.blank);
  if constexpr (requires { c.zero_infinity; }) options.take("zero_infinity", c.zero_infinity);
  if (run["options"].contains("distance_function")) options.taken.insert("distance_function");
  EXPECT_EQ(options.taken.size(), run["options"].size()) << run["options"];
  return c;
}

template <std::size_t Arity, class Criterion>
void compare(const json& run, at::ScalarType dtype, double tolerance, Criterion defaults = {}) {
  SCOPED_TRACE(run["criterion"].get<std::string>() + " " + run["options"].dump() + " " +
               run["reduction"].get<std::string>());
  const Criterion criterion = configure(run, dtype, defaults);
  std::array<at::Tensor, Arity> arguments;
  ASSERT_EQ(run["arguments"].size(), Arity);
  for (std::size_t i = 0; i < Arity; ++i) {
    arguments[i] = tensor(run["arguments"][i], dtype);
    if (i < run["gradients"].size()) arguments[i].requires_grad_(true);
  }
  const at::Tensor loss = std::apply(criterion, arguments);
  EXPECT_EQ(loss.sizes().vec(), run["loss"]["shape"].get<std::vector<std::int64_t>>());
  EXPECT_EQ(loss.scalar_type(), dtype);
  EXPECT_LT(distance(loss, run["loss"]["values"]), tolerance);
  (loss * at::arange(1, loss.numel() + 1).view(loss.sizes())).sum().backward();
  for (std::size_t i = 0; i < run["gradients"].size(); ++i) {
    EXPECT_LT(distance(arguments[i].grad(), run["gradients"][i]), tolerance) << "gradient " << i;
  }
}

struct L1Distance {
  at::Tensor operator()(const at::Tensor& a, const at::Tensor& b) const { return (a - b).abs().sum(-1); }
};

void compare_all(at::ScalarType dtype, double tolerance) {
  std::set<std::string> seen;
  for (const json& run : fixtures()["runs"]) {
    const std::string name = run["criterion"];
    seen.insert(name);
    if (name == "CrossEntropy")
      compare<2, CrossEntropy>(run, dtype, tolerance);
    else if (name == "NLL")
      compare<2, NLL>(run, dtype, tolerance);
    else if (name == "BCE")
      compare<2, BCE>(run, dtype, tolerance);
    else if (name == "BCEWithLogits")
      compare<2, BCEWithLogits>(run, dtype, tolerance);
    else if (name == "MultiMargin")
      compare<2, MultiMargin>(run, dtype, tolerance);
    else if (name == "MultiLabelMargin")
      compare<2, MultiLabelMargin>(run, dtype, tolerance);
    else if (name == "MultiLabelSoftMargin")
      compare<2, MultiLabelSoftMargin>(run, dtype, tolerance);
    else if (name == "SoftMargin")
      compare<2, SoftMargin>(run, dtype, tolerance);
    else if (name == "MSE")
      compare<2, MSE>(run, dtype, tolerance);
    else if (name == "L1")
      compare<2, L1>(run, dtype, tolerance);
    else if (name == "SmoothL1")
      compare<2, SmoothL1>(run, dtype, tolerance);
    else if (name == "Huber")
      compare<2, Huber>(run, dtype, tolerance);
    else if (name == "PoissonNLL")
      compare<2, PoissonNLL>(run, dtype, tolerance);
    else if (name == "GaussianNLL")
      compare<3, GaussianNLL>(run, dtype, tolerance);
    else if (name == "KLDiv")
      compare<2, KLDiv>(run, dtype, tolerance);
    else if (name == "HingeEmbedding")
      compare<2, HingeEmbedding>(run, dtype, tolerance);
    else if (name == "CosineEmbedding")
      compare<3, CosineEmbedding>(run, dtype, tolerance);
    else if (name == "MarginRanking")
      compare<3, MarginRanking>(run, dtype, tolerance);
    else if (name == "TripletMargin")
      compare<3, TripletMargin>(run, dtype, tolerance);
    else if (run["options"].contains("distance_function"))
      compare<3>(run, dtype, tolerance, TripletMarginWithDistance{L1Distance{}});
    else if (name == "TripletMarginWithDistance")
      compare<3, TripletMarginWithDistance<>>(run, dtype, tolerance);
    else if (name == "CTC")
      compare<4, CTC>(run, dtype, tolerance);
    else
      FAIL() << "no criterion for " << name;
  }
  EXPECT_EQ(seen.size(), 21u);
}

TEST(Criteria, HavePyTorchsValuesAndGradients) { compare_all(at::kDouble, 1e-12); }
// The numbers expected are those of float64: arguments rounded to float32 alone move CTC's gradients by 2e-6.
TEST(Criteria, HavePyTorchsValuesAndGradientsInSinglePrecision) { compare_all(at::kFloat, 3e-6); }

TEST(Criteria, DoNotBroadcast) {
  const at::Tensor column = at::ones({8, 1}), row = at::ones({8});
  const std::string rest =
      ": the output has shape [8, 1], the target [8]; expected one shape for both (they would be broadcast)";
  const auto message = [&](auto criterion) { return error_of([&] { criterion(column, row); }); };
  EXPECT_EQ(message(MSE{}), "MSE" + rest);
  EXPECT_EQ(message(L1{}), "L1" + rest);
  EXPECT_EQ(message(SmoothL1{}), "SmoothL1" + rest);
  EXPECT_EQ(message(Huber{}), "Huber" + rest);
  EXPECT_EQ(message(BCE{}), "BCE" + rest);
  EXPECT_EQ(message(BCEWithLogits{}), "BCEWithLogits" + rest);
  EXPECT_EQ(message(SoftMargin{}), "SoftMargin" + rest);
  EXPECT_EQ(message(MultiLabelSoftMargin{}), "MultiLabelSoftMargin" + rest);
  EXPECT_EQ(message(PoissonNLL{}), "PoissonNLL" + rest);
  EXPECT_EQ(message(KLDiv{}), "KLDiv" + rest);
  EXPECT_EQ(message(HingeEmbedding{}), "HingeEmbedding" + rest);
  EXPECT_EQ(error_of([&] { GaussianNLL{}(column, row, row); }), "GaussianNLL" + rest);
  EXPECT_EQ(error_of([&] {
              GaussianNLL{}(column, column, at::ones({4, 1, 1}));
            }),
            "GaussianNLL: the output has shape [8, 1], the variance [4, 1, 1]; expected one shape for both "
            "(they would be broadcast)");
  EXPECT_EQ(error_of([&] {
              GaussianNLL{}(at::ones({4, 6}), at::ones({4, 6}), at::ones({1, 1}));
            }).substr(0, 40),
            "GaussianNLL: the output has shape [4, 6]");
  EXPECT_EQ(error_of([&] { MarginRanking{}(column, row, row); }).substr(0, 66),
            "MarginRanking: the output has shape [8, 1], the second output [8];");
  EXPECT_EQ(error_of([&] { MarginRanking{}(row, row, column); }).substr(0, 57),
            "MarginRanking: the output has shape [8], the target [8, 1");
}

TEST(Criteria, NameAMarginThatIsNotPositive) {
  const at::Tensor x = at::ones({2, 3});
  EXPECT_EQ(error_of([&] { TripletMargin{.margin = 0}(x, x, x); }),
            "TripletMargin::margin is 0, expected above 0");
  EXPECT_EQ(error_of([&] {
              TripletMarginWithDistance{PairwiseDistance{}, -1.5}(x, x, x);
            }),
            "TripletMarginWithDistance::margin is -1.5, expected above 0");
}

TEST(CriterionSums, AddWeightedParts) {
  const at::Tensor x = at::rand({4, 5}, at::kDouble), y = at::rand({4, 5}, at::kDouble);
  auto sum = MSE{} + 0.5 * L1{} +
             3 * part<"largest">([](const at::Tensor& a, const at::Tensor& b) { return (a - b).max(); });
  const auto values = sum.values(x, y);
  EXPECT_TRUE(values.parts[0].equal(at::mse_loss(x, y)));
  EXPECT_TRUE(values.parts[1].equal(at::l1_loss(x, y)));
  EXPECT_TRUE(values.parts[2].equal((x - y).max()));
  const double expected = at::mse_loss(x, y).item<double>() + 0.5 * at::l1_loss(x, y).item<double>() +
                          3 * (x - y).max().item<double>();
  EXPECT_NEAR(sum(x, y).item<double>(), expected, 1e-14);
  EXPECT_NEAR((0.1 * sum)(x, y).item<double>(), 0.1 * expected, 1e-14);
  EXPECT_NEAR((2 * MSE{})(x, y).item<double>(), 2 * at::mse_loss(x, y).item<double>(), 1e-14);
  std::get<0>(sum.parts).weight = 0;
  EXPECT_NEAR(sum(x, y).item<double>(), expected - at::mse_loss(x, y).item<double>(), 1e-14)
      << "weights may be changed";
  auto both = CrossEntropy{} + sum;
  static_assert(std::tuple_size_v<decltype(both.parts)> == 4);
  static_assert(std::tuple_element_t<0, decltype(both.parts)>::name.view() == "cross_entropy");
  static_assert(std::tuple_element_t<3, decltype(both.parts)>::name.view() == "largest");
}

TEST(CriterionSums, TakeGradientsOfAllParts) {
  const at::Tensor x = at::rand({3}, at::kDouble).requires_grad_(true), y = at::zeros({3}, at::kDouble);
  (MSE{.reduction = Reduction::sum} + 0.5 * L1{.reduction = Reduction::sum})(x, y).backward();
  EXPECT_TRUE(at::allclose(x.grad(), 2 * x.detach() + 0.5));
}

TEST(CriterionSums, GiveAPartOneOfSeveralOutputs) {
  const std::pair output(at::rand({4, 3}), at::rand({4, 2}));
  const at::Tensor classes = at::tensor({0, 1, 2, 1}, at::kLong), boxes = at::rand({4, 2});
  auto sum = part<"class">(CrossEntropy{}).of<0>() + 2 * part<"box">(SmoothL1{}).of<1>() +
             0.1 * part<"size">(MSE{}).of<1, 1>();
  const auto values = sum.values(output, classes, boxes);
  EXPECT_TRUE(values.parts[0].equal(CrossEntropy{}(output.first, classes)));
  EXPECT_TRUE(values.parts[1].equal(SmoothL1{}(output.second, boxes)));
  auto swapped = part<"box">(L1{}).of<1, 0>();
  EXPECT_TRUE(swapped(output, boxes, classes).equal(L1{}(output.second, boxes)));
  static_assert(!decltype(swapped)::takes<std::pair<at::Tensor, at::Tensor>>, "there is no target 0");
  static_assert(!decltype(swapped)::takes<at::Tensor, at::Tensor>, "there is no output 1");
}

/// What default steps log, against the criteria's own values.
struct TwoHeads : torch::nn::Module {
  static constexpr int n_targets = 2;
  torch::nn::Linear classes{register_module("classes", torch::nn::Linear(4, 3))};
  torch::nn::Linear box{register_module("box", torch::nn::Linear(4, 2))};
  std::tuple<at::Tensor, at::Tensor> forward(const at::Tensor& x) { return {classes(x), box(x)}; }
};

using Three = std::tuple<at::Tensor, at::Tensor, at::Tensor>;

TEST(CriterionSums, AreLoggedByPartInEveryStage) {
  torch::manual_seed(1);
  std::vector<Three> data{{at::rand({6, 4}), at::randint(3, {6}), at::rand({6, 2})}};
  const auto criterion = part<"class">(CrossEntropy{}).of<0>() + 2 * part<"box">(MSE{}).of<1>();
  Trainer trainer{TwoHeads{},
                  criterion,
                  SGD{.lr = 0.1},
                  none,
                  Identity{},
                  callbacks(),
                  {.max_epochs = 1, .num_sanity_val_steps = 0},
                  barebones};
  const auto expected = [&] {
    const auto& [x, classes, boxes] = data[0];
    const at::NoGradGuard no_grad;
    auto [c, b] = trainer.module().forward(x);
    return std::pair(at::cross_entropy_loss(c, classes).item<double>(),
                     at::mse_loss(b, boxes).item<double>());
  };
  const auto check = [](const Metrics& metrics, const std::string& stage, std::pair<double, double> parts) {
    EXPECT_NEAR(metrics.at(stage + "/class"), parts.first, 1e-6);
    EXPECT_NEAR(metrics.at(stage + "/box"), parts.second, 1e-6);
    EXPECT_NEAR(metrics.at(stage + "/loss"), parts.first + 2 * parts.second, 1e-6);
    EXPECT_EQ(metrics.size(), 3u) << metrics.names();
    EXPECT_EQ(metrics.front().name, stage + "/loss");
  };
  const auto before = expected();
  trainer.fit(data);
  check(trainer.context().metrics().logged_metrics(), "train", before);
  check(trainer.validate(data), "val", expected());
  check(trainer.test(data), "test", expected());
  EXPECT_LT(expected().first, before.first);
}

/// A criterion that wants forward's results one by one, in the Trainer.
struct Triplets : torch::nn::Module {
  static constexpr int n_targets = 0;
  torch::nn::Linear layer{register_module("layer", torch::nn::Linear(4, 2))};
  std::tuple<at::Tensor, at::Tensor, at::Tensor> forward(const at::Tensor& a, const at::Tensor& b,
                                                         const at::Tensor& c) {
    return {layer(a), layer(b), layer(c)};
  }
};

TEST(Criteria, TakeForwardsResultsOneByOne) {
  std::vector<Three> data{{at::rand({6, 4}), at::rand({6, 4}), at::rand({6, 4})}};
  Trainer trainer{Triplets{}, TripletMargin{}, SGD{.lr = 0.1},     none,
                  Identity{}, callbacks(),     {.max_epochs = 20}, barebones};
  const double before = trainer.test(data).at("test/loss");
  const auto& [a, b, c] = data[0];
  auto [ya, yb, yc] = trainer.module().forward(a, b, c);
  EXPECT_NEAR(before, at::triplet_margin_loss(ya, yb, yc).item<double>(), 1e-6);
  trainer.fit(data);
  EXPECT_LT(trainer.test(data).at("test/loss"), before);
}

/// Where the results must stand elsewhere among the arguments, a criterion takes them as forward returns
/// them.
TEST(Criteria, TakeAPairAsItIs) {
  const std::pair output(at::rand({4, 2}), at::rand({4, 2}));
  const at::Tensor target = at::rand({4, 2});
  GaussianNLL gaussian;
  EXPECT_TRUE(fulmen::detail::call_criterion(gaussian, output, target)
                  .equal(gaussian(output.first, target, output.second)));
  CTC ctc;
  const std::tuple sequences(at::rand({6, 2, 5}).log_softmax(2), at::tensor({6, 5}));
  const at::Tensor labels = at::tensor({1, 2, 3, 4}).view({2, 2}), lengths = at::tensor({2, 1});
  const at::Tensor loss = fulmen::detail::call_criterion(ctc, sequences, labels, lengths);
  EXPECT_TRUE(loss.equal(at::ctc_loss(std::get<0>(sequences), labels, {6, 5}, {2, 1})));
  EXPECT_TRUE(loss.equal(ctc(std::get<0>(sequences), labels, at::IntArrayRef{6, 5}, at::IntArrayRef{2, 1})));
  MarginRanking ranking;
  EXPECT_TRUE(fulmen::detail::call_criterion(ranking, output, target)
                  .equal(ranking(output.first, output.second, target)));
}

}  // namespace

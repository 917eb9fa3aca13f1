// Tests schedule/: rates, momenta and states against PyTorch's and Thunder's own (fixtures/schedule), restoring,
// composition, errors.
#include "../testing.hpp"

#include <fulmen/checkpoint/archive.hpp>
#include <fulmen/schedule/compose.hpp>
#include <fulmen/schedule/cyclic.hpp>
#include <fulmen/schedule/decay.hpp>
#include <fulmen/schedule/plateau.hpp>
#include <fulmen/schedule/policies.hpp>
#include <fulmen/schedule/scheduler.hpp>
#include <fulmen/schedule/swa.hpp>

#include <nlohmann/json.hpp>

#include <gtest/gtest.h>

#include <cmath>
#include <cstdint>
#include <fstream>
#include <limits>
#include <optional>
#include <set>
#include <string>
#include <type_traits>
#include <utility>
#include <vector>

namespace {

using namespace fulmen;
using nlohmann::json;

using Groups = std::vector<ParamGroup>;
template <class S>
using Bound = fulmen::detail::BoundScheduler<S, Interval::epoch>;

Groups two_groups(double first = 0.1, double second = 0.03, std::optional<double> momentum = 0.9) {
  return {{first, first, {}, momentum}, {second, second, {}, momentum}};
}

template <class S>
Bound<S> bind(S scheduler, Groups& groups) {
  return {{std::move(scheduler), 1, ""}, groups};
}

/// The rates of the first group at times 0 to n - 1.
template <class S>
std::vector<double> rates(S scheduler, int n, double lr = 1.0) {
  Groups groups = two_groups(lr);
  auto bound = bind(std::move(scheduler), groups);
  std::vector<double> out;
  for (int i = 0; i < n; ++i) {
    out.push_back(groups[0].lr);
    bound.step();
  }
  return out;
}

/// Values of which repetitions stand as [value, count].
std::vector<double> unpacked(const json& values) {
  std::vector<double> out;
  for (const json& value : values) {
    if (value.is_array()) {
      out.insert(out.end(), value[1].get<std::size_t>(), value[0].get<double>());
    } else {
      out.push_back(value.get<double>());
    }
  }
  return out;
}

/// What Python's state_dict() had, as a State.
State state_of(const json& state) {
  State out("python");
  for (const auto& [key, value] : state.items()) {
    if (value.is_number_integer()) {
      out.set(key, value.get<std::int64_t>());
    } else if (value.is_number()) {
      out.set(key, value.get<double>());
    } else if (key == "_schedulers") {
      std::vector<State> parts;
      for (const json& part : value) parts.push_back(state_of(part));
      out.set(key, parts);
    } else if (key == "_milestones") {
      out.set(key, value.get<std::vector<std::int64_t>>());
    } else {
      out.set(key, value.get<std::vector<double>>());
    }
  }
  return out;
}

/// What fulmen's state has of what Python's has, both as text.
std::string text_of(const State& state, const json& like) {
  json out;
  for (const auto& [key, value] : like.items()) {
    if (!state.contains(key)) {
      out[key] = "missing";
    } else if (key == "_schedulers") {
      const auto parts = state.get<std::vector<State>>(key);
      for (std::size_t i = 0; i < value.size(); ++i) out[key].push_back(text_of(parts.at(i), value[i]));
    } else if (value.is_array()) {
      out[key] = value.size();
    } else {
      out[key] = state.get<double>(key);
    }
  }
  return out.dump();
}

/// fulmen's per_group has a state for each group, where Python's schedulers with lists have one.
template <class S>
constexpr bool has_pythons_state = true;
template <class... S>
constexpr bool has_pythons_state<PerGroup<S...>> = false;

/// A file of runs, each of which must be asked for.
class Runs {
 public:
  explicit Runs(const std::string& file)
      : all_(json::parse(std::ifstream(FULMEN_TEST_DATA_DIR "/schedule/" + file))) {}
  ~Runs() {
    std::set<std::string> expected;
    for (const json& run : all_["runs"]) expected.insert(run["name"]);
    EXPECT_EQ(seen_, expected) << "each run once";
  }

  /// That a scheduler goes the way of the run of that name: from the start, after its state went into a file and a
  /// new one, and from Python's state.
  template <class S>
  void check(const std::string& name, const S& scheduler, std::optional<double> momentum = 0.9) {
    SCOPED_TRACE(name);
    seen_.insert(name);
    const json* found = nullptr;
    for (const json& run : all_["runs"]) {
      if (run["name"] == name) found = &run;
    }
    ASSERT_NE(found, nullptr);
    const json& run = *found;
    std::vector<std::vector<double>> expected, momenta;
    for (const json& group : run["rates"]) expected.push_back(unpacked(group));
    if (run.contains("momenta")) {
      for (const json& group : run["momenta"]) momenta.push_back(unpacked(group));
    }
    ASSERT_EQ(expected.at(0).size(), 201u);
    const auto compare = [&](const Groups& groups, std::size_t t) {
      for (std::size_t g = 0; g < 2; ++g) {
        const double want = expected[g][t];
        EXPECT_NEAR(groups[g].lr, want, std::abs(want) * 1e-12) << "group " << g << " at " << t;
        if (groups[g].lr != want) ++inexact;
        if (!momenta.empty()) {
          EXPECT_NEAR(groups[g].momentum.value(), momenta[g][t], 1e-12) << "group " << g << " at " << t;
        }
      }
    };
    const auto advance = [&](auto& bound, std::size_t t) {
      if constexpr (Bound<S>::monitors) {
        const json& metric = run["metrics"][t];
        bound.step(metric.is_null() ? std::numeric_limits<double>::quiet_NaN() : metric.get<double>());
      } else {
        bound.step();
      }
    };
    const std::size_t saved_at = all_["saved_at"];

    Groups groups = two_groups(0.1, 0.03, momentum);
    auto bound = bind(scheduler, groups);
    const TemporaryFolder folder;
    Groups at_save;
    for (std::size_t t = 0; t <= 200; ++t) {
      compare(groups, t);
      if (t == saved_at) {
        if (has_pythons_state<S>) {
          EXPECT_EQ(text_of(bound.state_dict(), run["state"]), text_of(state_of(run["state"]), run["state"]));
        }
        checkpoint::write(folder.path / "scheduler.ckpt", bound.state_dict());
        at_save = groups;
      }
      if (t < 200) advance(bound, t);
    }
    std::vector<State> states{State(checkpoint::read(folder.path / "scheduler.ckpt"), "fulmen")};
    if (has_pythons_state<S>) states.push_back(state_of(run["state"]));
    for (const State& state : states) {
      SCOPED_TRACE("restored from the state of " + state.owner());
      Groups others = two_groups(0.1, 0.03, momentum);
      auto other = bind(scheduler, others);
      // The optimizer's state brings these back.
      for (std::size_t g = 0; g < 2; ++g)
        others[g].lr = at_save[g].lr, others[g].momentum = at_save[g].momentum;
      other.load_state_dict(state);
      for (std::size_t t = saved_at; t < 200; ++t) {
        advance(other, t);
        compare(others, t + 1);
      }
    }
  }

  int inexact = 0;

 private:
  json all_;
  std::set<std::string> seen_;
};

double power(double base, std::int64_t t) { return std::pow(base, static_cast<double>(t)); }
constexpr double real(std::int64_t t) { return static_cast<double>(t); }

TEST(Schedulers, HavePyTorchsRatesAndStates) {
  Runs runs("schedulers.json");
  const LambdaLR wave{[](std::int64_t t) { return 1.0 + real(t % 3); }};

  runs.check("lambda", LambdaLR{[](std::int64_t t) { return power(0.95, t); }});
  runs.check("lambda_per_group", per_group(LambdaLR{[](std::int64_t t) { return 1 / (1 + real(t)); }},
                                           LambdaLR{[](std::int64_t t) { return t < 50 ? 1.0 : 0.5; }}));
  runs.check("multiplicative", MultiplicativeLR{[](std::int64_t t) { return t % 7 == 0 ? 0.9 : 1.01; }});
  runs.check("step", StepLR{.step_size = 30});
  runs.check("step_gamma", StepLR{.step_size = 7, .gamma = 0.7});
  runs.check("multi_step", MultiStepLR{.milestones = {30, 80}});
  runs.check("multi_step_twice", MultiStepLR{.milestones = {50, 10, 10, 150, 10}, .gamma = 0.5});
  runs.check("constant", ConstantLR{});
  runs.check("constant_factor", ConstantLR{.factor = 0.7, .total_iters = 90});
  runs.check("constant_never", ConstantLR{.factor = 0.5, .total_iters = 0});
  runs.check("linear", LinearLR{});
  runs.check("linear_down", LinearLR{.start_factor = 1.0, .end_factor = 0.2, .total_iters = 60});
  runs.check("linear_none", LinearLR{.start_factor = 0.5, .total_iters = 0});
  runs.check("exponential", ExponentialLR{.gamma = 0.97});
  runs.check("polynomial", PolynomialLR{});
  runs.check("polynomial_power", PolynomialLR{.total_iters = 90, .power = 2.5});
  runs.check("cosine", CosineAnnealingLR{.T_max = 100});
  runs.check("cosine_short", CosineAnnealingLR{.T_max = 7, .eta_min = 0.005});
  runs.check("cosine_one", CosineAnnealingLR{.T_max = 1, .eta_min = 0.01});
  runs.check("restarts", CosineAnnealingWarmRestarts{.T_0 = 13});
  runs.check("restarts_mult", CosineAnnealingWarmRestarts{.T_0 = 10, .T_mult = 2, .eta_min = 0.001});

  runs.check("one_cycle", OneCycleLR{.max_lr = 0.5, .total_steps = 200});
  runs.check("one_cycle_linear", OneCycleLR{.max_lr = {0.5, 0.2},
                                            .epochs = 20,
                                            .steps_per_epoch = 11,
                                            .pct_start = 0.4,
                                            .anneal_strategy = Anneal::linear,
                                            .div_factor = 10,
                                            .final_div_factor = 100});
  runs.check("one_cycle_three", OneCycleLR{.max_lr = 0.3,
                                           .total_steps = 210,
                                           .base_momentum = {0.8, 0.7},
                                           .max_momentum = 0.9,
                                           .three_phase = true});
  runs.check("one_cycle_without",
             OneCycleLR{.max_lr = 0.3, .total_steps = 201, .pct_start = 0.0, .cycle_momentum = false},
             std::nullopt);
  runs.check("one_cycle_adam", OneCycleLR{.max_lr = 0.01, .total_steps = 250, .pct_start = 0.1});

  runs.check("cyclic", CyclicLR{.base_lr = 0.01, .max_lr = 0.1, .step_size_up = 20});
  runs.check("cyclic_half", CyclicLR{.base_lr = {0.01, 0.02},
                                     .max_lr = {0.1, 0.3},
                                     .step_size_up = 10,
                                     .step_size_down = 25,
                                     .mode = CyclicLR::Mode::triangular2,
                                     .base_momentum = 0.7,
                                     .max_momentum = 0.95});
  runs.check("cyclic_exp", CyclicLR{.base_lr = 0.001,
                                    .max_lr = 0.1,
                                    .step_size_up = 15,
                                    .mode = CyclicLR::Mode::exp_range,
                                    .gamma = 0.99,
                                    .cycle_momentum = false});
  runs.check("cyclic_scaled", CyclicLR{.base_lr = 0.01,
                                       .max_lr = 0.1,
                                       .step_size_up = 10,
                                       .step_size_down = 5,
                                       .scale_mode = CyclicLR::ScaleMode::iterations,
                                       .cycle_momentum = false}
                                  .scaled_by([](double x) { return 1 / std::pow(5.0, x * 0.0001); }));
  runs.check("cyclic_scaled_cycle",
             CyclicLR{.base_lr = 0.01, .max_lr = 0.1, .step_size_up = 40, .cycle_momentum = false}.scaled_by(
                 [](double x) { return 1 / x; }));
  runs.check(
      "cyclic_up_only",
      CyclicLR{
          .base_lr = 0.01, .max_lr = 0.1, .step_size_up = 50, .step_size_down = 0, .cycle_momentum = false});

  runs.check("swa", SWALR{.swa_lr = 0.05});
  runs.check("swa_linear",
             SWALR{.swa_lr = {0.05, 0.2}, .anneal_epochs = 90, .anneal_strategy = Anneal::linear});
  runs.check("swa_at_once", SWALR{.swa_lr = 0.05, .anneal_epochs = 0});

  runs.check("chained", ConstantLR{.factor = 0.1, .total_iters = 20} | StepLR{.step_size = 40, .gamma = 0.5});
  runs.check("chained_three", LinearLR{.total_iters = 10} | MultiStepLR{.milestones = {60, 120}} |
                                  CosineAnnealingLR{.T_max = 90});
  runs.check("chained_one_cycle", chained(OneCycleLR{.max_lr = 0.5, .total_steps = 200}, wave));
  runs.check(
      "chained_cyclic",
      chained(CyclicLR{.base_lr = 0.02, .max_lr = 0.1, .step_size_up = 9, .cycle_momentum = false}, wave));
  runs.check("sequential", sequential(ConstantLR{.factor = 0.1, .total_iters = 50}, 20,
                                      StepLR{.step_size = 30, .gamma = 0.5}));
  runs.check("sequential_all",
             until(5, LinearLR{}) |
                 until(20, MultiplicativeLR{[](std::int64_t t) { return t % 4 == 0 ? 1.1 : 1.0; }}) |
                 until(30, PolynomialLR{.total_iters = 8}) |
                 until(45, MultiStepLR{.milestones = {0, 5, 9}, .gamma = 0.5}) |
                 until(55, ConstantLR{.factor = 0.5, .total_iters = 0}) |
                 until(60, ConstantLR{.factor = 0.5, .total_iters = 3}) |
                 until(70, LinearLR{.start_factor = 0.5, .total_iters = 4}) |
                 until(80, CosineAnnealingWarmRestarts{.T_0 = 5}) |
                 until(100, LambdaLR{[](std::int64_t t) { return 1 / (2.0 + real(t / 5)); }}) |
                 until(115, CosineAnnealingLR{.T_max = 10, .eta_min = 0.001}) | ExponentialLR{.gamma = 0.9});
  runs.check("sequential_from_zero",
             sequential(ConstantLR{}, 0, StepLR{.step_size = 50}, 190, ExponentialLR{.gamma = 0.5}));
  runs.check("sequential_same",
             sequential(StepLR{.step_size = 5}, 20, StepLR{.step_size = 6}, 20, StepLR{.step_size = 50}));
  runs.check("sequential_swa",
             until(40, StepLR{.step_size = 10, .gamma = 0.8}) | SWALR{.swa_lr = 0.05, .anneal_epochs = 5});
  runs.check("sequential_one_cycle", until(145, LinearLR{}) | OneCycleLR{.max_lr = 0.4, .total_steps = 60});
  runs.check("sequential_cyclic", until(20, CyclicLR{.base_lr = 0.01, .max_lr = 0.1, .step_size_up = 6}) |
                                      StepLR{.step_size = 30});
  runs.check("chained_sequential", sequential(LinearLR{}, 20, ConstantLR{.factor = 0.5, .total_iters = 30}) |
                                       StepLR{.step_size = 60, .gamma = 0.5});

  using Plateau = ReduceLROnPlateau;
  runs.check("plateau", Plateau{});
  runs.check("plateau_max", Plateau{.mode = Plateau::Mode::max,
                                    .factor = 0.5,
                                    .patience = 3,
                                    .threshold = 0.05,
                                    .cooldown = 4,
                                    .min_lr = 0.001});
  runs.check("plateau_abs", Plateau{.factor = 0.7,
                                    .patience = 2,
                                    .threshold = 0.1,
                                    .threshold_mode = Plateau::Threshold::abs,
                                    .min_lr = {0.01, 0.02}});
  runs.check("plateau_max_abs", Plateau{.mode = Plateau::Mode::max,
                                        .factor = 0.3,
                                        .patience = 0,
                                        .threshold = 0.2,
                                        .threshold_mode = Plateau::Threshold::abs,
                                        .cooldown = 10,
                                        .eps = 1e-3});
  RecordProperty("rates that differ in the last bits", runs.inexact);
}

TEST(Schedulers, HaveThundersRates) {
  Runs runs("thunder.json");
  runs.check("switch", Switch{{{0, 1e-4}, {2, 1e-10}, {100, 0.5}}});
  runs.check("switch_later", Switch{{{5, 1e-4}}});
  runs.check("switch_init", Switch{.rates = {{9, 0.25}}, .lr_init = 1e-3});
  runs.check("switch_per_group", per_group(Switch{{{1, 0.5}, {199, 0.25}}}, Switch{{{0, 2.0}, {3, 0.125}}}));
  runs.check("multiply", Multiply{{{1, 0.1}, {4, 0.3}, {150, 2.0}}});
  runs.check("multiply_at_zero", Multiply{.factors = {{0, 0.5}, {200, 0.5}}, .lr_init = {0.2, 0.4}});
  // The function alone is Thunder's Schedule, too.
  const auto rate = [](std::int64_t t) { return 1e-3 / (1 + real(t / 4)); };
  runs.check("schedule", Schedule{rate});
  runs.check("schedule", rate);
}

/// A policy of a user's: one with a rate, one that writes the momentum and has something to keep.
struct Halves {
  double rate(std::int64_t t, double initial, double) const { return initial / real(t + 1); }
};
struct Counts {
  std::int64_t calls = 0;
  void update(std::int64_t, std::span<ParamGroup> groups) {
    ++calls;
    for (ParamGroup& group : groups) group.momentum = 1 / real(calls);
  }
  State state_dict() const { return State("Counts").set("calls", calls); }
  void load_state_dict(const State& state) { calls = state.get<std::int64_t>("calls"); }
};

TEST(Schedulers, MayBeTheUsersOwn) {
  EXPECT_EQ(rates(Halves{}, 3), (std::vector<double>{1, 0.5, 1.0 / 3}));
  EXPECT_EQ(rates([](std::int64_t t) { return 2 * t; }, 3), (std::vector<double>{0, 2, 4}))
      << "the rate, not a factor";
  EXPECT_EQ(rates(until(2, [](std::int64_t t) { return 5.0f + static_cast<float>(t); }) | Halves{}, 4),
            (std::vector<double>{5, 6, 1, 0.5}));
  Groups groups = two_groups(), others = two_groups();
  auto bound = bind(chained(Counts{}, Halves{}), groups);
  bound.step();
  EXPECT_EQ(groups[1].momentum, 0.5);
  EXPECT_EQ(bound.get_last_lr(), (std::vector<double>{0.05, 0.015}));
  auto other = bind(chained(Counts{}, Halves{}), others);
  other.load_state_dict(bound.state_dict());
  other.step();
  EXPECT_EQ(others[1].momentum, 1.0 / 3) << "its own state came along";
}

TEST(Schedulers, WarmUpThenBeginAtTheirTimeZero) {
  EXPECT_EQ(rates(warmup(4, StepLR{.step_size = 2, .gamma = 0.5}, 0.5), 9),
            (std::vector<double>{0.5, 0.625, 0.75, 0.875, 1, 1, 0.5, 0.5, 0.25}));
  EXPECT_EQ(rates(warmup(0, StepLR{.step_size = 1, .gamma = 0.5}), 3), (std::vector<double>{1, 0.5, 0.25}));
}

TEST(Schedulers, ComposeToAnyDepth) {
  const StepLR halve{.step_size = 1, .gamma = 0.5};
  const ConstantLR low{.factor = 0.25, .total_iters = 2};
  // Where PyTorch has a bug or raises: a composition as a part of a sequence begins as it does alone.
  EXPECT_EQ(rates(sequential(low | halve, 3, low | halve), 6),
            (std::vector<double>{0.25, 0.125, 0.25, 0.25, 0.125, 0.25}));
  EXPECT_EQ(rates(until(1, halve) | sequential(low, 1, halve), 4), (std::vector<double>{1, 0.25, 1, 0.5}));
  EXPECT_EQ(rates(until(2, sequential(low, 1, halve)) | low, 4), (std::vector<double>{0.25, 1, 0.25, 0.25}));

  Groups groups = two_groups(1, 1);
  auto bound = bind(until(2, per_group(halve, low)) | per_group(low, low | halve), groups);
  std::vector<double> second;
  for (int t = 0; t < 4; ++t, bound.step()) second.push_back(groups[1].lr);
  EXPECT_EQ(second, (std::vector<double>{0.25, 0.25, 0.25, 0.125}));
  EXPECT_EQ(rates(per_group(halve | low, low) | halve, 4),
            (std::vector<double>{0.25, 0.0625, 0.0625, 0.015625}));

  // Written with types instead of functions.
  EXPECT_EQ(rates(SequentialLR{std::tuple{low, halve}, {1}}, 3), rates(sequential(low, 1, halve), 3));
  EXPECT_EQ(rates(ChainedScheduler{std::tuple{low, halve}}, 3), rates(low | halve, 3));
  static_assert(
      std::is_same_v<decltype(low | halve | low), ChainedScheduler<ConstantLR, StepLR, ConstantLR>>);
}

template <class A, class B>
concept Piped = requires(A a, B b) {
  a | b;
};

TEST(Schedulers, AloneArePiped) {
  struct Other {};
  const auto function = [](std::int64_t) { return 1.0; };
  static_assert(Piped<StepLR, LinearLR> && Piped<StepLR, decltype(function)> &&
                Piped<decltype(function), Switch>);
  static_assert(Piped<Until<StepLR>, LinearLR> && Piped<Until<StepLR>, Until<StepLR>>);
  static_assert(!Piped<StepLR, Other> && !Piped<Other, StepLR> && !Piped<StepLR, int> &&
                !Piped<double, StepLR>);
  static_assert(!Piped<decltype(function), decltype(function)> && !Piped<StepLR, Until<StepLR>> &&
                !Piped<None, StepLR>);
  static_assert(!AnySchedulerPolicy<Until<StepLR>> && !AnySchedulerPolicy<None> &&
                !AnySchedulerPolicy<double>);
}

TEST(Schedulers, LeaveGroupsAloneThatComeLater) {
  Groups groups = two_groups(1, 1);
  auto bound = bind(StepLR{.step_size = 1} | OneCycleLR{.max_lr = 1, .total_steps = 10}, groups);
  groups.push_back({7, 7, {}, std::nullopt});
  bound.step();
  EXPECT_EQ(groups[2].lr, 7);
  EXPECT_NE(groups[1].lr, 1);
}

/// What binding to two groups says.
template <class S>
std::string complaint(S scheduler, std::optional<double> momentum = 0.9) {
  return error_of([&] {
    Groups groups = two_groups(0.1, 0.03, momentum);
    bind(std::move(scheduler), groups);
  });
}

TEST(Schedulers, SayWhichOptionIsWrong) {
  EXPECT_EQ(complaint(StepLR{.step_size = 0}), "StepLR::step_size is 0, expected at least 1");
  EXPECT_EQ(complaint(ConstantLR{.factor = 1.5}),
            "ConstantLR::factor is 1.5, expected above 0 and at most 1");
  EXPECT_EQ(complaint(LinearLR{.start_factor = 0}),
            "LinearLR::start_factor is 0, expected above 0 and at most 1");
  EXPECT_EQ(complaint(LinearLR{.end_factor = -1}), "LinearLR::end_factor is -1, expected 0 to 1");
  EXPECT_EQ(complaint(LinearLR{.total_iters = -1}), "LinearLR::total_iters is -1, expected at least 0");
  EXPECT_EQ(complaint(PolynomialLR{.total_iters = -2}),
            "PolynomialLR::total_iters is -2, expected at least 0");
  EXPECT_EQ(complaint(CosineAnnealingLR{.T_max = 0}), "CosineAnnealingLR::T_max is 0, expected at least 1");
  EXPECT_EQ(complaint(CosineAnnealingWarmRestarts{.T_0 = 0}),
            "CosineAnnealingWarmRestarts::T_0 is 0, expected at least 1");
  EXPECT_EQ(complaint(CosineAnnealingWarmRestarts{.T_0 = 3, .T_mult = 0}),
            "CosineAnnealingWarmRestarts::T_mult is 0, expected at least 1");
  EXPECT_EQ(complaint(OneCycleLR{.max_lr = 1, .epochs = 3}),
            "OneCycleLR needs total_steps, or both epochs and steps_per_epoch");
  EXPECT_EQ(complaint(OneCycleLR{.max_lr = 1, .total_steps = 0}),
            "OneCycleLR::total_steps is 0, expected at least 1");
  EXPECT_EQ(complaint(OneCycleLR{.max_lr = 1, .epochs = 1, .steps_per_epoch = -1}),
            "OneCycleLR::steps_per_epoch is -1, expected at least 1");
  EXPECT_EQ(complaint(OneCycleLR{.max_lr = 1, .total_steps = 9, .pct_start = 1.1}),
            "OneCycleLR::pct_start is 1.1, expected 0 to 1");
  EXPECT_EQ(
      complaint(OneCycleLR{.max_lr = {1, 2, 3}, .total_steps = 9}),
      "OneCycleLR::max_lr has 3 values, expected one, or one for each of the optimizer's 2 parameter groups");
  EXPECT_EQ(complaint(OneCycleLR{.max_lr = 1, .total_steps = 10, .pct_start = 0.1}),
            "OneCycleLR: with pct_start 0.1 of 10 steps phase 1 has no length");
  const std::string needs =
      "::cycle_momentum is on, expected an optimizer with momentum or betas, such as Adam";
  EXPECT_EQ(complaint(OneCycleLR{.max_lr = 1, .total_steps = 9}, std::nullopt), "OneCycleLR" + needs);
  EXPECT_EQ(complaint(CyclicLR{.base_lr = 0, .max_lr = 1}, std::nullopt), "CyclicLR" + needs);
  EXPECT_EQ(complaint(CyclicLR{.base_lr = 0, .max_lr = 1, .step_size_up = 0}),
            "CyclicLR::step_size_up is 0, expected at least 1");
  EXPECT_EQ(complaint(CyclicLR{.base_lr = 0, .max_lr = 1, .base_momentum = {1.0}}),
            "CyclicLR::base_momentum has 1 values, expected one, or one for each of the optimizer's 2 "
            "parameter groups");
  EXPECT_EQ(complaint(SWALR{.swa_lr = 1, .anneal_epochs = -1}),
            "SWALR::anneal_epochs is -1, expected at least 0");
  EXPECT_EQ(complaint(ReduceLROnPlateau{.factor = 1}), "ReduceLROnPlateau::factor is 1, expected below 1");
  EXPECT_EQ(complaint(ReduceLROnPlateau{.min_lr = {0, 0, 0}}),
            "ReduceLROnPlateau::min_lr has 3 values, expected one, or one for each of the optimizer's 2 "
            "parameter groups");
  EXPECT_EQ(complaint(per_group(StepLR{.step_size = 1})),
            "per_group has 1 schedulers, expected one for each of the optimizer's 2 parameter groups");
  EXPECT_EQ(complaint(SequentialLR{std::tuple{LinearLR{}, LinearLR{}}, {1, 2}}),
            "SequentialLR::milestones has 2 times for 2 schedulers, expected one less than schedulers");
  EXPECT_EQ(complaint(sequential(LinearLR{}, 5, LinearLR{}, 4, LinearLR{})),
            "SequentialLR::milestones has 4 after 5, expected them ascending");

  Groups groups = two_groups();
  auto one_cycle = bind(OneCycleLR{.max_lr = 1, .total_steps = 7}, groups);
  for (int i = 0; i < 7; ++i) one_cycle.step();
  EXPECT_EQ(error_of([&] { one_cycle.step(); }), "OneCycleLR was stepped 8 times, its total_steps is 7");

  auto step = bind(StepLR{.step_size = 1}, groups);
  EXPECT_EQ(error_of([&] {
              step.load_state_dict(State("x").set("last_epoch", 3).set("base_lrs", std::vector{1.0}));
            }),
            "state of a scheduler has 1 parameter groups, expected 2");
  auto chain = bind(chained(StepLR{.step_size = 1}), groups);
  EXPECT_EQ(error_of([&] { chain.load_state_dict(State("x").set("_schedulers", std::vector<State>{})); }),
            "state of a scheduler has 0 parts, expected 1");
}

}  // namespace

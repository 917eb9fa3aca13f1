// Tests loop/log.hpp: how logged values are kept, reduced and read.
#include <fulmen/loop/log.hpp>

#include <ATen/ops/scalar_tensor.h>
#include <ATen/ops/zeros.h>

#include <gtest/gtest.h>

#include <cmath>
#include <map>
#include <string>

namespace {

using namespace fulmen;

std::map<std::string, double> as_map(const Metrics& metrics) {
  std::map<std::string, double> out;
  for (const Metric& m : metrics) out.emplace(m.name, m.value);
  return out;
}

TEST(LogName, LiteralAndRuntimeNamesAreTheSameName) {
  static_assert(LogName("loss").hash() != LogName("Loss").hash());
  const std::string text = "loss";
  EXPECT_EQ(runtime_name(text).hash(), LogName("loss").hash());
}

TEST(MetricStore, TrainingBatchesLogOnStepByDefault) {
  MetricStore store;
  store.log("loss", 1.0, {}, {Phase::train, true, 4});
  store.log("loss", 2.0, {}, {Phase::train, true, 4});
  EXPECT_EQ(as_map(store.step_metrics(Phase::train)), (std::map<std::string, double>{{"loss", 2.0}}));
  EXPECT_EQ(store.step_metrics(Phase::train).size(), 1u) << "repeated until the epoch ends";
  EXPECT_TRUE(store.end_epoch(Phase::train).empty());
}

TEST(MetricStore, EpochMeanIsWeightedByBatchSize) {
  MetricStore store;
  store.begin_epoch(Phase::validation);
  store.log("loss", 1.0, {}, {Phase::validation, false, 3});
  store.log("loss", 5.0, {}, {Phase::validation, false, 1});
  EXPECT_EQ(store.progress_bar_metrics(Phase::validation).size(), 0u);
  EXPECT_DOUBLE_EQ(as_map(store.end_epoch(Phase::validation)).at("loss"), 2.0);
  store.begin_epoch(Phase::validation);
  EXPECT_DOUBLE_EQ(store.find("loss").value(), 2.0) << "the last run stays readable while the next one begins";
  store.log("loss", 7.0, {.batch_size = 2}, {Phase::validation, false, 1});
  EXPECT_DOUBLE_EQ(as_map(store.end_epoch(Phase::validation)).at("loss"), 7.0);
}

TEST(MetricStore, ForksWhereBothAreAsked) {
  MetricStore store;
  const LogOptions both{.prog_bar = true, .on_step = true, .on_epoch = true};
  store.log("loss", 1.0, both, {Phase::train, true, 1});
  store.log("loss", 3.0, both, {Phase::train, true, 1});
  EXPECT_EQ(as_map(store.step_metrics(Phase::train)), (std::map<std::string, double>{{"loss_step", 3.0}}));
  EXPECT_EQ(as_map(store.end_epoch(Phase::train)), (std::map<std::string, double>{{"loss_epoch", 2.0}}));
  EXPECT_EQ(as_map(store.callback_metrics()),
            (std::map<std::string, double>{{"loss", 2.0}, {"loss_step", 3.0}, {"loss_epoch", 2.0}}));
  EXPECT_EQ(as_map(store.progress_bar_metrics()),
            (std::map<std::string, double>{{"loss_step", 3.0}, {"loss_epoch", 2.0}}));
  EXPECT_DOUBLE_EQ(store.find("loss_step").value(), 3.0);
  EXPECT_DOUBLE_EQ(store.find("loss_epoch").value(), 2.0);
}

TEST(MetricStore, Reductions) {
  MetricStore store;
  for (const double value : {2.0, -1.0, 5.0}) {
    store.log("sum", value, {.reduce = Reduce::sum}, {Phase::test, false, 8});
    store.log("min", value, {.reduce = Reduce::min}, {Phase::test, false, 8});
    store.log("max", value, {.reduce = Reduce::max}, {Phase::test, false, 8});
  }
  EXPECT_EQ(as_map(store.end_epoch(Phase::test)), (std::map<std::string, double>{{"sum", 6}, {"min", -1}, {"max", 5}}));
}

// The path of tensors on a device, taken here with tensors of the CPU: more values than one fold holds.
TEST(MetricStore, DeferredTensorsReduceAsNumbersDo) {
  for (const Reduce reduce : {Reduce::mean, Reduce::sum, Reduce::min, Reduce::max}) {
    MetricStore now, later;
    for (int i = 0; i < 200; ++i) {
      const double value = std::sin(1.7 * i);
      const std::int64_t weight = 1 + i % 5;
      now.log("x", value, {.reduce = reduce}, {Phase::validation, false, weight});
      later.log_deferred("x", at::scalar_tensor(value, at::kDouble), {.reduce = reduce}, {Phase::validation, false, weight});
    }
    EXPECT_NEAR(as_map(later.end_epoch(Phase::validation)).at("x"), as_map(now.end_epoch(Phase::validation)).at("x"), 1e-12);
    EXPECT_NEAR(later.find("x").value(), now.find("x").value(), 1e-12);
  }
}

TEST(MetricStore, OneNameInTwoPhasesIsTwoValues) {
  MetricStore store;
  store.log("loss", 1.0, {.on_epoch = true}, {Phase::validation, false, 1});
  store.log("loss", 9.0, {.on_epoch = true}, {Phase::test, false, 1});
  EXPECT_DOUBLE_EQ(as_map(store.end_epoch(Phase::validation)).at("loss"), 1.0);
  EXPECT_DOUBLE_EQ(as_map(store.end_epoch(Phase::test)).at("loss"), 9.0);
}

TEST(MetricStore, ForgetsTheSanityCheck) {
  MetricStore store;
  store.log("a", 1.0, {}, {Phase::sanity_check, false, 1});
  store.log("b", 2.0, {}, {Phase::validation, false, 1});
  store.end_epoch(Phase::sanity_check);
  store.forget(Phase::sanity_check);
  EXPECT_FALSE(store.find("a").has_value());
  store.log("b", 4.0, {}, {Phase::validation, false, 1});
  EXPECT_DOUBLE_EQ(as_map(store.end_epoch(Phase::validation)).at("b"), 3.0) << "the other slots are still found";
}

TEST(MetricStore, ManyNames) {
  MetricStore store;
  for (int round = 0; round < 2; ++round) {
    for (int i = 0; i < 500; ++i) {
      store.log(runtime_name("name" + std::to_string(i)), i + round, {}, {Phase::train, true, 1});
    }
  }
  const auto all = as_map(store.step_metrics(Phase::train));
  ASSERT_EQ(all.size(), 500u);
  EXPECT_EQ(all.at("name123"), 124);
}

TEST(MetricStore, RejectsWhatIsNotANumber) {
  MetricStore store;
  const auto message = [&](auto&& call) -> std::string {
    try {
      call();
    } catch (const std::invalid_argument& error) {
      return error.what();
    }
    return "no error";
  };
  EXPECT_EQ(message([&] { store.log("loss", at::zeros({2, 3}), {}, {Phase::train, true, 1}); }),
            "log(\"loss\"): expected a number or a tensor of one element, got a tensor of 6 elements");
  EXPECT_EQ(message([&] { store.log("loss", at::Tensor(), {}, {Phase::train, true, 1}); }),
            "log(\"loss\"): expected a number or a tensor of one element, got an undefined tensor");
  EXPECT_EQ(message([&] { store.log("x", 1.0, {.on_step = false, .on_epoch = false}, {Phase::train, true, 1}); }),
            "log(\"x\"): neither on_step nor on_epoch, so the value would never be read");
}

}  // namespace

// Compares the rules of layers and criteria with autograd: outputs, gradients of inputs and of parameters.
#pragma once

#include <fulmen/nn/chain.hpp>
#include <fulmen/nn/composed_step.hpp>

#include <ATen/core/LegacyTypeDispatch.h>
#include <torch/torch.h>

#include <gtest/gtest.h>

#include <array>
#include <cmath>
#include <cstdint>
#include <cstdlib>
#include <string>
#include <tuple>
#include <utility>
#include <vector>

namespace gradients_test_seed {

/// Seeds each test, with FULMEN_TEST_SEED or 0: LibTorch's own first seed is another in each process.
struct SeedEachTest : testing::EmptyTestEventListener {
  std::uint64_t seed = std::getenv("FULMEN_TEST_SEED") == nullptr
                           ? 0
                           : std::strtoull(std::getenv("FULMEN_TEST_SEED"), nullptr, 10);
  void OnTestStart(const testing::TestInfo&) override { torch::manual_seed(seed); }
};
inline const bool seeds_each_test = [] {
  testing::UnitTest::GetInstance()->listeners().Append(new SeedEachTest);  // which owns it
  return true;
}();

}  // namespace gradients_test_seed

namespace fulmen::gradients_test {

/// The largest difference, relative to the largest value.
inline double difference(const at::Tensor& a, const at::Tensor& b) {
  if (a.numel() == 0) return 0;
  const at::Tensor wide = b.to(at::kDouble);
  return (a.to(at::kDouble) - wide).abs().max().item<double>() /
         std::max(1e-3, wide.abs().max().item<double>());
}

inline double default_tolerance(const at::Tensor& t) {
  return t.scalar_type() == at::kDouble ? 1e-12 : t.scalar_type() == at::kFloat ? 2e-6 : 2e-2;
}

inline void expect_same(const at::Tensor& found, const at::Tensor& expected, double tolerance,
                        const std::string& what) {
  ASSERT_EQ(found.defined(), expected.defined()) << what;
  if (!found.defined()) return;
  ASSERT_EQ(found.sizes(), expected.sizes()) << what;
  ASSERT_EQ(found.scalar_type(), expected.scalar_type()) << what;
  if (expected.isnan().any().item<bool>()) ADD_FAILURE() << what << ": the reference has NaN: a bad test";
  const double tol = tolerance > 0 ? tolerance : default_tolerance(expected);
  EXPECT_LE(difference(found, expected), tol) << what;
}

/// What autograd gives: outputs, gradients of inputs (undefined where there is none), gradients of
/// parameters.
struct Expected {
  std::vector<at::Tensor> outputs, inputs, parameters;
};

template <class L>
std::vector<at::Tensor> parameters_of(L& layer) {
  if constexpr (nn::detail::IsModule<L>)
    return layer.parameters();
  else
    return {};
}

/// @param seeds gradients of the outputs
template <class L, std::size_t N, std::size_t M>
Expected by_autograd(L& layer, const std::array<at::Tensor, N>& inputs,
                     const std::array<at::Tensor, M>& seeds, std::uint64_t seed) {
  Expected out;
  std::array<at::Tensor, N> leaves;
  for (std::size_t i = 0; i < N; ++i) {
    leaves[i] = inputs[i].detach().clone(at::MemoryFormat::Preserve);
    if (at::isFloatingType(leaves[i].scalar_type())) leaves[i].requires_grad_(true);
  }
  for (const at::Tensor& p : parameters_of(layer)) p.mutable_grad().reset();
  torch::manual_seed(seed);
  std::array<at::Tensor, M> results;
  std::size_t at = 0;
  nn::detail::flatten_into(
      results, at,
      nn::detail::apply_n<N>([&](std::size_t i) -> const at::Tensor& { return leaves[i]; },
                             [&](const auto&... x) { return nn::detail::CallLayer<L>::call(layer, x...); }));
  std::vector<at::Tensor> roots, grads;
  for (std::size_t i = 0; i < M; ++i) {
    out.outputs.push_back(results[i].detach());
    if (results[i].requires_grad() && seeds[i].defined())
      roots.push_back(results[i]), grads.push_back(seeds[i].to(results[i].scalar_type()));
  }
  if (!roots.empty()) torch::autograd::backward(roots, grads);
  for (const at::Tensor& leaf : leaves) out.inputs.push_back(leaf.grad());
  for (const at::Tensor& p : parameters_of(layer)) {
    out.parameters.push_back(p.grad());
    p.mutable_grad().reset();
  }
  return out;
}

struct Check {
  double tolerance = 0;     ///< 0: by type
  int steps = 3;            ///< the first plans the memory, the others use the plan
  bool wants_input = true;  ///< whether the gradient of the inputs is asked for
  bool accumulate = false;  ///< the gradients of two steps are added up
};

/// Runs the rule of a layer as a step would, several times, on the inputs that `make_inputs()` makes (a
/// std::array<at::Tensor, N>), and compares with autograd. Buffers (running statistics) are put back between,
/// and compared.
template <std::size_t N, class L, class MakeInputs>
void check_layer(L& layer, MakeInputs&& make_inputs, Check check = {}) {
  using R = nn::Rule<L, N>;
  constexpr std::size_t M = nn::detail::output_count<R>();
  typename R::Kept kept;
  nn::Workspace workspace;
  std::array<nn::Buffer, N> in;
  std::array<nn::Buffer, M> seed_buffers;
  for (int step = 0; step < check.steps; ++step) {
    SCOPED_TRACE("step " + std::to_string(step));
    const std::array<at::Tensor, N> inputs = make_inputs();
    const std::uint64_t seed = 100 + static_cast<std::uint64_t>(step);
    std::vector<at::Tensor> state_before, state_after;
    if constexpr (nn::detail::IsModule<L>) {
      for (const at::Tensor& b : layer.buffers()) state_before.push_back(b.clone());
    }
    // Which shapes the outputs have, and gradients for them.
    std::array<at::Tensor, M> shapes, seeds;
    {
      const at::NoGradGuard no_grad;
      std::size_t at = 0;
      nn::detail::flatten_into(
          shapes, at,
          nn::detail::apply_n<N>(
              [&](std::size_t i) -> const at::Tensor& { return inputs[i]; },
              [&](const auto&... x) { return nn::detail::CallLayer<L>::call(layer, x...); }));
      for (std::size_t i = 0; i < M; ++i) seeds[i] = at::randn_like(shapes[i], at::MemoryFormat::Contiguous);
    }
    const auto put_back = [&] {
      if constexpr (nn::detail::IsModule<L>) {
        const at::NoGradGuard no_grad;
        std::size_t i = 0;
        for (at::Tensor& b : layer.buffers()) b.copy_(state_before[i++]);
      }
    };
    put_back();
    const Expected expected = by_autograd<L, N, M>(layer, inputs, seeds, seed);
    if constexpr (nn::detail::IsModule<L>) {
      for (const at::Tensor& b : layer.buffers()) state_after.push_back(b.clone());
    }
    put_back();
    torch::manual_seed(seed);
    // Copies: the rule may overwrite what it is given, where it is told so.
    std::array<at::Tensor, N> own;
    std::vector<at::Tensor> before;
    for (const at::Tensor& p : parameters_of(layer)) {
      if (check.accumulate && step > 0 && p.requires_grad())
        p.mutable_grad() = at::ones_like(p, at::MemoryFormat::Contiguous);
    }
    const bool overwrite = step % 2 == 1;
    {
      const at::AutoDispatchBelowADInplaceOrView below;
      workspace.begin(step > 0);
      if (step == 0) nn::detail::rule_prepare<R>(layer, kept);
      nn::ForwardPass<N> forward{{}, workspace, overwrite && !R::saves_input, true, check.wants_input};
      for (std::size_t i = 0; i < N; ++i) {
        own[i] = inputs[i].clone(at::MemoryFormat::Preserve);
        workspace.hold(in[i], own[i]);
        forward.inputs[i] = &in[i];
      }
      const auto out = nn::detail::rule_forward<R>(layer, kept, forward);
      for (std::size_t i = 0; i < M; ++i)
        expect_same(**out[i], expected.outputs[i], check.tolerance, "output " + std::to_string(i));
      nn::BackwardPass<N, M> backward{{}, {}, {}, workspace, check.wants_input, overwrite};
      for (std::size_t i = 0; i < M; ++i) {
        workspace.hold(seed_buffers[i], seeds[i].clone());
        backward.gradients[i] = at::isFloatingType((*out[i])->scalar_type()) ? &seed_buffers[i] : nullptr;
        if (R::saves_output)
          backward.outputs[i] = out[i];
        else
          workspace.release(*out[i]);
      }
      for (std::size_t i = 0; i < N; ++i) {
        if (R::saves_input)
          backward.inputs[i] = &in[i];
        else
          workspace.release(in[i]);
      }
      const auto gradients = nn::detail::rule_backward<R>(layer, kept, backward);
      for (std::size_t i = 0; i < N && check.wants_input; ++i) {
        if (!expected.inputs[i].defined()) continue;
        ASSERT_TRUE(gradients[i] != nullptr) << "the gradient of input " << i;
        expect_same(**gradients[i], expected.inputs[i], check.tolerance,
                    "the gradient of input " + std::to_string(i));
      }
      if (!overwrite) {
        for (std::size_t i = 0; i < M; ++i) {
          const bool same = !seed_buffers[i].defined() || seed_buffers[i]->equal(seeds[i]);
          EXPECT_TRUE(same) << "backward has changed a gradient that others need";
        }
      }
      for (std::size_t i = 0; i < N; ++i) {
        const bool same = overwrite || own[i].equal(inputs[i]);
        EXPECT_TRUE(same) << "forward has changed an input that others need";
        workspace.release(in[i]);
        if (gradients[i] != nullptr) workspace.release(*gradients[i]);
      }
      for (std::size_t i = 0; i < M; ++i) workspace.release(*out[i]), workspace.release(seed_buffers[i]);
      workspace.end();
    }
    std::size_t i = 0;
    for (const at::Tensor& p : parameters_of(layer)) {
      at::Tensor wanted = expected.parameters[i];
      if (check.accumulate && step > 0 && wanted.defined()) wanted = wanted + 1;
      expect_same(p.grad(), wanted, check.tolerance, "the gradient of parameter " + std::to_string(i));
      p.mutable_grad().reset();
      ++i;
    }
    if constexpr (nn::detail::IsModule<L>) {
      i = 0;
      for (const at::Tensor& b : layer.buffers())
        expect_same(b, state_after[i], check.tolerance, "buffer " + std::to_string(i)), ++i;
    }
  }
}

/// Runs a whole step, several times, and compares loss, output and all gradients with autograd's.
/// @param make_batch gives std::pair(std::array<at::Tensor, N> inputs, std::array<at::Tensor, T> targets)
template <std::size_t N = 1, std::size_t T = 1, class Net, class Criterion, class MakeBatch>
void check_step(Net& net, Criterion& criterion, MakeBatch&& make_batch, Check check = {}) {
  // Of many terms that nearly cancel, a parameter's gradient has the rounding of all of them.
  const double tolerance = check.tolerance > 0 || net.parameters().empty() ? check.tolerance
                           : net.parameters()[0].scalar_type() == at::kFloat ? 2e-5
                                                                             : 0;
  nn::ComposedStep<Net, Criterion, N, T> step(net, criterion);
  for (int k = 0; k < check.steps; ++k) {
    SCOPED_TRACE("step " + std::to_string(k));
    const auto [inputs, targets] = make_batch();
    std::vector<at::Tensor> state;
    for (const at::Tensor& b : net.buffers()) state.push_back(b.clone());
    for (const at::Tensor& p : net.parameters()) p.mutable_grad().reset();
    torch::manual_seed(static_cast<std::uint64_t>(k));
    auto prediction = nn::detail::apply_n<N>([&](std::size_t i) -> const at::Tensor& { return inputs[i]; },
                                             [&](const auto&... x) { return net.forward(x...); });
    const at::Tensor loss = nn::detail::apply_n<T>(
        [&](std::size_t i) -> const at::Tensor& { return targets[i]; },
        [&](const auto&... t) { return fulmen::detail::call_criterion(criterion, prediction, t...); });
    // As with two batches to an optimizer's step.
    const double scale = check.accumulate ? 0.5 : 1;
    (loss * scale).backward();
    std::vector<at::Tensor> expected;
    for (const at::Tensor& p : net.parameters()) {
      expected.push_back(p.grad());
      p.mutable_grad().reset();
    }
    {
      const at::NoGradGuard no_grad;
      std::size_t i = 0;
      for (at::Tensor& b : net.buffers()) b.copy_(state[i++]);
    }
    torch::manual_seed(static_cast<std::uint64_t>(k));
    std::array<const at::Tensor*, N> in;
    std::array<const at::Tensor*, T> to;
    for (std::size_t i = 0; i < N; ++i) in[i] = &inputs[i];
    for (std::size_t i = 0; i < T; ++i) to[i] = &targets[i];
    step.forward(in, to);
    const at::Tensor found = step.loss();
    expect_same(found, loss.detach(), check.tolerance, "the loss");
    std::array<at::Tensor, std::remove_reference_t<decltype(step)>::outputs> outputs;
    std::size_t at = 0;
    nn::detail::flatten_into(outputs, at, prediction);
    for (std::size_t i = 0; i < outputs.size(); ++i)
      expect_same(step.output(i), outputs[i].detach(), check.tolerance, "output " + std::to_string(i));
    step.backward(scale);
    std::size_t i = 0;
    for (const auto& item : net.named_parameters()) {
      expect_same(item.value().grad(), expected[i++], tolerance, "the gradient of " + item.key());
    }
    for (const at::Tensor& p : net.parameters()) p.mutable_grad().reset();
  }
}

}  // namespace fulmen::gradients_test

// Criteria for numbers and for distributions. Each wants output and target of one shape.
#pragma once

#include <fulmen/compiled.hpp>
#include <fulmen/fixed_string.hpp>
#include <fulmen/criteria/reduction.hpp>

#include <ATen/TensorOperators.h>
#include <ATen/ops/huber_loss.h>
#include <ATen/ops/kl_div.h>
#include <ATen/ops/l1_loss.h>
#include <ATen/ops/mse_loss.h>
#include <ATen/ops/poisson_nll_loss.h>
#include <ATen/ops/smooth_l1_loss.h>

#include <cstddef>
#include <cstdint>
#include <tuple>

#if FULMEN_BODIES
#include <ATen/core/grad_mode.h>

#include <cmath>
#include <numbers>
#endif

namespace fulmen {

/// Mean squared error. Source: torch.nn.MSELoss. @throws std::invalid_argument if the shapes differ.
struct MSE {
  static constexpr FixedString criterion_name{"mse"};

  Reduction reduction = Reduction::mean;

  at::Tensor operator()(const at::Tensor& output, const at::Tensor& target) const {
    detail::same_shape("MSE", output, target);
    return at::mse_loss(output, target, detail::enum_of(reduction));
  }
};

/// Mean absolute error. Source: torch.nn.L1Loss. @throws std::invalid_argument if the shapes differ.
struct L1 {
  static constexpr FixedString criterion_name{"l1"};

  Reduction reduction = Reduction::mean;

  at::Tensor operator()(const at::Tensor& output, const at::Tensor& target) const {
    detail::same_shape("L1", output, target);
    return at::l1_loss(output, target, detail::enum_of(reduction));
  }
};

/// Squared below `beta`, absolute above; slope 1. Source: torch.nn.SmoothL1Loss.
/// @throws std::invalid_argument if the shapes differ.
struct SmoothL1 {
  static constexpr FixedString criterion_name{"smooth_l1"};

  Reduction reduction = Reduction::mean;
  double beta = 1;  ///< at least 0; 0 is L1

  at::Tensor operator()(const at::Tensor& output, const at::Tensor& target) const {
    detail::same_shape("SmoothL1", output, target);
    return at::smooth_l1_loss(output, target, detail::enum_of(reduction), beta);
  }
};

/// Squared below `delta`, absolute above; slope `delta`. Source: torch.nn.HuberLoss.
/// @throws std::invalid_argument if the shapes differ.
struct Huber {
  static constexpr FixedString criterion_name{"huber"};

  Reduction reduction = Reduction::mean;
  double delta = 1;  ///< above 0

  at::Tensor operator()(const at::Tensor& output, const at::Tensor& target) const {
    detail::same_shape("Huber", output, target);
    return at::huber_loss(output, target, detail::enum_of(reduction), delta);
  }
};

/// Negative log likelihood of counts under a Poisson distribution with the output as its rate, or the rate's
/// logarithm. Source: torch.nn.PoissonNLLLoss. @throws std::invalid_argument if the shapes differ.
struct PoissonNLL {
  static constexpr FixedString criterion_name{"poisson_nll"};

  bool log_input = true;  ///< the output is the logarithm of the rate
  bool full = false;      ///< with Stirling's approximation of log(target!)
  double eps = 1e-8;      ///< added to a rate before its logarithm is taken, where log_input is false
  Reduction reduction = Reduction::mean;

  at::Tensor operator()(const at::Tensor& output, const at::Tensor& target) const {
    detail::same_shape("PoissonNLL", output, target);
    return at::poisson_nll_loss(output, target, log_input, full, eps, detail::enum_of(reduction));
  }
};

/// Negative log likelihood under normal distributions with the output as mean, and their variances: of the
/// output's shape, or without its last dimension, or with one dimension of size 1. Source:
/// torch.nn.GaussianNLLLoss; unlike there, negative variances are not looked for (that would wait for the
/// device) but clamped to `eps` like other small ones. A forward that returns the pair (mean, variance) is
/// taken as it is. @throws std::invalid_argument if shapes do not fit.
struct GaussianNLL {
  static constexpr FixedString criterion_name{"gaussian_nll"};

  bool full = false;  ///< with the constant log(2π)/2
  double eps = 1e-6;  ///< variances are at least this
  Reduction reduction = Reduction::mean;

  at::Tensor operator()(const at::Tensor& mean, const at::Tensor& target, const at::Tensor& variance) const;
  template <class MeanAndVariance>
    requires(std::tuple_size<MeanAndVariance>::value == 2)
  at::Tensor operator()(const MeanAndVariance& output, const at::Tensor& target) const {
    const auto& [mean, variance] = output;
    return (*this)(mean, target, variance);
  }

 private:
  static at::Tensor of_shape(const at::Tensor& mean, const at::Tensor& variance);
};

/// KLDiv's own: `mean` divides by the number of elements, `batchmean` by the batch size, which is the
/// divergence's meaning.
enum class KLDivReduction : std::int64_t {
  none = at::Reduction::None,
  mean = at::Reduction::Mean,
  sum = at::Reduction::Sum,
  batchmean = at::Reduction::END
};

/// Kullback-Leibler divergence: log-probabilities, and probabilities (with log_target their logarithms) of
/// one shape. Source: torch.nn.KLDivLoss. @throws std::invalid_argument if the shapes differ.
struct KLDiv {
  static constexpr FixedString criterion_name{"kl_div"};

  KLDivReduction reduction = KLDivReduction::mean;
  bool log_target = false;

  at::Tensor operator()(const at::Tensor& log_probabilities, const at::Tensor& target) const {
    detail::same_shape("KLDiv", log_probabilities, target);
    if (reduction != KLDivReduction::batchmean) {
      return at::kl_div(log_probabilities, target, static_cast<std::int64_t>(reduction), log_target);
    }
    const at::Tensor sum = at::kl_div(log_probabilities, target, at::Reduction::Sum, log_target);
    return log_probabilities.dim() > 0 ? sum / log_probabilities.size(0) : sum;
  }
};

#if FULMEN_BODIES
FULMEN_INLINE at::Tensor GaussianNLL::operator()(const at::Tensor& mean, const at::Tensor& target,
                                                 const at::Tensor& variance) const {
  detail::same_shape("GaussianNLL", mean, target);
  at::Tensor var = of_shape(mean, variance).clone();
  {
    const at::NoGradGuard no_grad;  // a clamped variance still gets its gradient, as in PyTorch
    var.clamp_min_(eps);
  }
  at::Tensor loss = 0.5 * (var.log() + (mean - target).square() / var);
  if (full) loss = loss + 0.5 * std::log(2 * std::numbers::pi);
  return detail::reduce(loss, reduction);
}

FULMEN_INLINE at::Tensor GaussianNLL::of_shape(const at::Tensor& mean, const at::Tensor& variance) {
  const at::IntArrayRef wanted = mean.sizes(), found = variance.sizes();
  if (wanted.equals(found)) return variance;
  if (wanted.size() == found.size() + 1 && wanted.slice(0, found.size()).equals(found))
    return variance.unsqueeze(-1);
  std::int64_t of_different = wanted.size() == found.size() ? 0 : 2;
  for (std::size_t i = 0; of_different < 2 && i < wanted.size(); ++i) {
    if (wanted[i] != found[i]) of_different += found[i];
  }
  if (of_different != 1) detail::fail_shapes("GaussianNLL", "variance", mean, variance);
  return variance;
}
#endif

}  // namespace fulmen

// The rules of the criteria for numbers and for distributions.
#pragma once

#include <fulmen/compiled.hpp>
#include <fulmen/criteria/regression.hpp>
#include <fulmen/nn/criterion_rule.hpp>
#include <fulmen/nn/reduction.hpp>

#include <array>

#if FULMEN_BODIES
#include <ATen/core/Reduction.h>
#include <ATen/ops/huber_loss.h>
#include <ATen/ops/huber_loss_backward.h>
#include <ATen/ops/huber_loss_backward_cpu_dispatch.h>
#include <ATen/ops/huber_loss_cpu_dispatch.h>
#include <ATen/ops/mse_loss.h>
#include <ATen/ops/mse_loss_backward.h>
#include <ATen/ops/mse_loss_backward_cpu_dispatch.h>
#include <ATen/ops/mse_loss_cpu_dispatch.h>
#include <ATen/ops/smooth_l1_loss.h>
#include <ATen/ops/smooth_l1_loss_backward.h>
#include <ATen/ops/smooth_l1_loss_backward_cpu_dispatch.h>
#include <ATen/ops/smooth_l1_loss_cpu_dispatch.h>
#include <ATen/ops/xlogy.h>
#include <ATen/ops/xlogy_cpu_dispatch.h>

#include <cmath>
#include <cstdint>
#include <numbers>
#endif

namespace fulmen::nn {

template <>
struct CriterionRule<MSE> {
  using Kept = detail::TermsKept;
  static Buffer& forward(const MSE& criterion, Kept& kept, const LossPass<>& pass);
  static Buffer* backward(const MSE& criterion, Kept& kept, const LossPass<>& pass);
};

template <>
struct CriterionRule<SmoothL1> {
  using Kept = detail::TermsKept;
  static Buffer& forward(const SmoothL1& criterion, Kept& kept, const LossPass<>& pass);
  static Buffer* backward(const SmoothL1& criterion, Kept& kept, const LossPass<>& pass);
};

template <>
struct CriterionRule<Huber> {
  using Kept = detail::TermsKept;
  static Buffer& forward(const Huber& criterion, Kept& kept, const LossPass<>& pass);
  static Buffer* backward(const Huber& criterion, Kept& kept, const LossPass<>& pass);
};

template <>
struct CriterionRule<L1> {
  struct Kept : detail::TermsKept {
    Buffer difference;
  };
  static Buffer& forward(const L1& criterion, Kept& kept, const LossPass<>& pass);
  static Buffer* backward(const L1& criterion, Kept& kept, const LossPass<>& pass);
};

template <>
struct CriterionRule<PoissonNLL> {
  struct Kept : detail::TermsKept {
    Buffer rate, product;
    detail::Number eps;
  };
  static Buffer& forward(const PoissonNLL& criterion, Kept& kept, const LossPass<>& pass);
  static Buffer* backward(const PoissonNLL& criterion, Kept& kept, const LossPass<>& pass);
};

template <>
struct CriterionRule<KLDiv> {
  struct Kept : detail::TermsKept {
    Buffer product, sum;
  };
  static Buffer& forward(const KLDiv& criterion, Kept& kept, const LossPass<>& pass);
  static Buffer* backward(const KLDiv& criterion, Kept& kept, const LossPass<>& pass);
};

namespace detail {

struct GaussianKept : TermsKept {
  Buffer variance, difference, log_variance, inverse, per_variance, variance_gradient;
  Number half, constant;
};
Buffer& gaussian_forward(const GaussianNLL& criterion, GaussianKept& kept, Workspace& workspace,
                         const at::Tensor& mean, const at::Tensor& target, const at::Tensor& variance);
void gaussian_backward(const GaussianNLL& criterion, GaussianKept& kept, Workspace& workspace,
                       const at::Tensor& mean, const at::Tensor& variance, bool of_variance,
                       const at::Tensor& seed);

}  // namespace detail

/// Mean; target and variance.
template <>
struct CriterionRule<GaussianNLL, 1, 2> {
  using Kept = detail::GaussianKept;
  static Buffer& forward(const GaussianNLL& criterion, Kept& kept, const LossPass<1, 2>& pass) {
    return detail::gaussian_forward(criterion, kept, pass.workspace, pass.output(), pass.target(0),
                                    pass.target(1));
  }
  static Buffer* backward(const GaussianNLL& criterion, Kept& kept, const LossPass<1, 2>& pass) {
    detail::gaussian_backward(criterion, kept, pass.workspace, pass.output(), pass.target(1), false,
                              *pass.seed);
    return detail::as_output(pass.workspace, kept.gradient, kept.gradient_as_output, pass.output());
  }
};
/// Mean and variance; target.
template <>
struct CriterionRule<GaussianNLL, 2, 1> {
  using Kept = detail::GaussianKept;
  static Buffer& forward(const GaussianNLL& criterion, Kept& kept, const LossPass<2, 1>& pass) {
    return detail::gaussian_forward(criterion, kept, pass.workspace, pass.output(0), pass.target(),
                                    pass.output(1));
  }
  static std::array<Buffer*, 2> backward(const GaussianNLL& criterion, Kept& kept,
                                         const LossPass<2, 1>& pass) {
    detail::gaussian_backward(criterion, kept, pass.workspace, pass.output(0), pass.output(1), true,
                              *pass.seed);
    return {detail::as_output(pass.workspace, kept.gradient, kept.gradient_as_output, pass.output(0)),
            &kept.variance_gradient};
  }
};

#if FULMEN_BODIES
FULMEN_INLINE Buffer& CriterionRule<MSE>::forward(const MSE& criterion, Kept& kept, const LossPass<>& pass) {
  const at::Tensor &x = pass.output(), &t = pass.target();
  fulmen::detail::same_shape("MSE", x, t);
  const std::int64_t reduction = fulmen::detail::enum_of(criterion.reduction);
  at::Tensor& terms = detail::take_terms(pass.workspace, kept, reduction, x, t);
  if (x.is_cpu()) [[likely]]
    at::cpu::mse_loss_out(terms, x, t, at::Reduction::None);
  else
    at::mse_loss_out(terms, x, t, at::Reduction::None);
  return detail::reduce_terms(pass.workspace, kept, reduction);
}
FULMEN_INLINE Buffer* CriterionRule<MSE>::backward(const MSE& criterion, Kept& kept, const LossPass<>& pass) {
  const at::Tensor &x = pass.output(), &t = pass.target();
  const std::int64_t reduction =
      detail::backward_reduction("MSE", fulmen::detail::enum_of(criterion.reduction), kept.loss);
  at::Tensor& gradient = pass.workspace.take(kept.gradient, x.sizes(), x);
  if (x.is_cpu()) [[likely]]
    at::cpu::mse_loss_backward_out(gradient, *pass.seed, x, t, reduction);
  else
    at::mse_loss_backward_out(gradient, *pass.seed, x, t, reduction);
  return &kept.gradient;
}

FULMEN_INLINE Buffer& CriterionRule<SmoothL1>::forward(const SmoothL1& criterion, Kept& kept,
                                                       const LossPass<>& pass) {
  const at::Tensor &x = pass.output(), &t = pass.target();
  fulmen::detail::same_shape("SmoothL1", x, t);
  const std::int64_t reduction = fulmen::detail::enum_of(criterion.reduction);
  at::Tensor& terms = detail::take_terms(pass.workspace, kept, reduction, x, t);
  if (x.is_cpu()) [[likely]]
    at::cpu::smooth_l1_loss_out(terms, x, t, at::Reduction::None, criterion.beta);
  else
    at::smooth_l1_loss_out(terms, x, t, at::Reduction::None, criterion.beta);
  return detail::reduce_terms(pass.workspace, kept, reduction);
}
FULMEN_INLINE Buffer* CriterionRule<SmoothL1>::backward(const SmoothL1& criterion, Kept& kept,
                                                        const LossPass<>& pass) {
  const at::Tensor &x = pass.output(), &t = pass.target();
  const std::int64_t reduction =
      detail::backward_reduction("SmoothL1", fulmen::detail::enum_of(criterion.reduction), kept.loss);
  at::Tensor& gradient = pass.workspace.take(kept.gradient, x.sizes(), x);
  if (x.is_cpu()) [[likely]]
    at::cpu::smooth_l1_loss_backward_out(gradient, *pass.seed, x, t, reduction, criterion.beta);
  else
    at::smooth_l1_loss_backward_out(gradient, *pass.seed, x, t, reduction, criterion.beta);
  return &kept.gradient;
}

FULMEN_INLINE Buffer& CriterionRule<Huber>::forward(const Huber& criterion, Kept& kept,
                                                    const LossPass<>& pass) {
  const at::Tensor &x = pass.output(), &t = pass.target();
  fulmen::detail::same_shape("Huber", x, t);
  const std::int64_t reduction = fulmen::detail::enum_of(criterion.reduction);
  at::Tensor& terms = detail::take_terms(pass.workspace, kept, reduction, x, t);
  if (x.is_cpu()) [[likely]]
    at::cpu::huber_loss_out(terms, x, t, at::Reduction::None, criterion.delta);
  else
    at::huber_loss_out(terms, x, t, at::Reduction::None, criterion.delta);
  return detail::reduce_terms(pass.workspace, kept, reduction);
}
FULMEN_INLINE Buffer* CriterionRule<Huber>::backward(const Huber& criterion, Kept& kept,
                                                     const LossPass<>& pass) {
  const at::Tensor &x = pass.output(), &t = pass.target();
  const std::int64_t reduction =
      detail::backward_reduction("Huber", fulmen::detail::enum_of(criterion.reduction), kept.loss);
  at::Tensor& gradient = pass.workspace.take(kept.gradient, x.sizes(), x);
  if (x.is_cpu()) [[likely]]
    at::cpu::huber_loss_backward_out(gradient, *pass.seed, x, t, reduction, criterion.delta);
  else
    at::huber_loss_backward_out(gradient, *pass.seed, x, t, reduction, criterion.delta);
  return &kept.gradient;
}

FULMEN_INLINE Buffer& CriterionRule<L1>::forward(const L1& criterion, Kept& kept, const LossPass<>& pass) {
  const at::Tensor &x = pass.output(), &t = pass.target();
  fulmen::detail::same_shape("L1", x, t);
  const std::int64_t reduction = fulmen::detail::enum_of(criterion.reduction);
  at::Tensor& difference = detail::take_common(pass.workspace, kept.difference, x, t);
  detail::direct::sub(difference, x, t);
  detail::direct::abs(detail::take_terms(pass.workspace, kept, reduction, x, t), difference);
  return detail::reduce_terms(pass.workspace, kept, reduction);
}
FULMEN_INLINE Buffer* CriterionRule<L1>::backward(const L1& criterion, Kept& kept, const LossPass<>& pass) {
  const at::Tensor& x = pass.output();
  const std::int64_t reduction =
      detail::backward_reduction("L1", fulmen::detail::enum_of(criterion.reduction), kept.loss);
  at::Tensor& gradient = pass.workspace.alias(kept.gradient, kept.difference);
  detail::direct::sgn(gradient, gradient);
  detail::direct::mul(gradient, gradient,
                      detail::share_of_terms(pass.workspace, kept.share, *pass.seed, reduction, x.numel()));
  pass.workspace.release(kept.share);
  pass.workspace.release(kept.difference);
  return detail::as_output(pass.workspace, kept.gradient, kept.gradient_as_output, x);
}

FULMEN_INLINE Buffer& CriterionRule<PoissonNLL>::forward(const PoissonNLL& criterion, Kept& kept,
                                                         const LossPass<>& pass) {
  Workspace& workspace = pass.workspace;
  const at::Tensor &x = pass.output(), &t = pass.target();
  fulmen::detail::same_shape("PoissonNLL", x, t);
  const std::int64_t reduction = fulmen::detail::enum_of(criterion.reduction);
  // exp(x), or x + eps: what the gradient needs.
  at::Tensor& rate = workspace.take(kept.rate, x.sizes(), x);
  at::Tensor& terms = detail::take_terms(workspace, kept, reduction, x, t);
  if (criterion.log_input) {
    detail::direct::exp(rate, x);
    detail::direct::mul(terms, t, x);
    detail::direct::sub(terms, rate, terms);
  } else {
    detail::direct::add(rate, x, detail::number(kept.eps, criterion.eps, x));
    detail::direct::log(terms, rate);
    detail::direct::mul(terms, t, terms);
    detail::direct::sub(terms, x, terms);
  }
  if (criterion.full) {
    const at::Tensor stirling = t * t.log() - t + 0.5 * (2 * std::numbers::pi * t).log();
    terms.add_(stirling.masked_fill(t <= 1, 0));
  }
  return detail::reduce_terms(workspace, kept, reduction);
}
FULMEN_INLINE Buffer* CriterionRule<PoissonNLL>::backward(const PoissonNLL& criterion, Kept& kept,
                                                          const LossPass<>& pass) {
  Workspace& workspace = pass.workspace;
  const at::Tensor &x = pass.output(), &t = pass.target();
  const std::int64_t reduction =
      detail::backward_reduction("PoissonNLL", fulmen::detail::enum_of(criterion.reduction), kept.loss);
  const at::Tensor& share = detail::share_of_terms(workspace, kept.share, *pass.seed, reduction, x.numel());
  at::Tensor& product = detail::take_common(workspace, kept.product, x, t);
  detail::direct::mul(product, t, share);
  at::Tensor& gradient = workspace.alias(kept.gradient, kept.rate);
  if (criterion.log_input) {
    detail::direct::mul(gradient, *kept.rate, share);
    detail::direct::sub(gradient, gradient, product);
  } else {
    detail::direct::div(gradient, product, *kept.rate);
    detail::direct::sub(gradient, share, gradient);
  }
  workspace.release(kept.product);
  workspace.release(kept.share);
  workspace.release(kept.rate);
  return &kept.gradient;
}

FULMEN_INLINE Buffer& CriterionRule<KLDiv>::forward(const KLDiv& criterion, Kept& kept,
                                                    const LossPass<>& pass) {
  Workspace& workspace = pass.workspace;
  const at::Tensor &x = pass.output(), &t = pass.target();
  fulmen::detail::same_shape("KLDiv", x, t);
  const bool by_batch = criterion.reduction == KLDivReduction::batchmean;
  const std::int64_t reduction =
      by_batch ? std::int64_t{at::Reduction::Sum} : static_cast<std::int64_t>(criterion.reduction);
  at::Tensor& product = detail::take_common(workspace, kept.product, x, t);
  at::Tensor& terms = detail::take_terms(workspace, kept, reduction, x, t);
  if (criterion.log_target) {
    detail::direct::exp(product, t);
    detail::direct::sub(terms, t, x);
    detail::direct::mul(terms, product, terms);
  } else {
    if (t.is_cpu()) [[likely]]
      at::cpu::xlogy_out(terms, t, t);
    else
      at::xlogy_out(terms, t, t);
    detail::direct::mul(product, t, x);
    detail::direct::sub(terms, terms, product);
  }
  workspace.release(kept.product);
  if (!by_batch || x.dim() == 0) return detail::reduce_terms(workspace, kept, reduction);
  detail::reduce_terms(workspace, kept.sum, kept.terms, reduction);
  detail::share_of(workspace, kept.loss, *kept.sum, static_cast<double>(x.size(0)));
  workspace.release(kept.sum);
  return kept.loss;
}
FULMEN_INLINE Buffer* CriterionRule<KLDiv>::backward(const KLDiv& criterion, Kept& kept,
                                                     const LossPass<>& pass) {
  Workspace& workspace = pass.workspace;
  const at::Tensor &x = pass.output(), &t = pass.target();
  const bool by_batch = criterion.reduction == KLDivReduction::batchmean && x.dim() > 0;
  const std::int64_t reduction =
      criterion.reduction == KLDivReduction::batchmean
          ? std::int64_t{by_batch ? at::Reduction::Mean : at::Reduction::Sum}
          : detail::backward_reduction("KLDiv", static_cast<std::int64_t>(criterion.reduction), kept.loss);
  const at::Tensor& share = detail::share_of_terms(workspace, kept.share, *pass.seed, reduction,
                                                   by_batch ? x.size(0) : x.numel(), /*negative=*/true);
  at::Tensor& gradient = detail::take_common(workspace, kept.gradient, x, t);
  if (criterion.log_target) {
    detail::direct::exp(gradient, t);
    detail::direct::mul(gradient, gradient, share);
  } else {
    detail::direct::mul(gradient, t, share);
  }
  workspace.release(kept.share);
  return detail::as_output(workspace, kept.gradient, kept.gradient_as_output, x);
}

namespace detail {

FULMEN_INLINE Buffer& gaussian_forward(const GaussianNLL& criterion, GaussianKept& kept, Workspace& workspace,
                                       const at::Tensor& mean, const at::Tensor& target,
                                       const at::Tensor& given_variance) {
  fulmen::detail::same_shape("GaussianNLL", mean, target);
  // Which other shapes will do is the criterion's to say.
  const bool fits = mean.sizes().equals(given_variance.sizes());
  if (!fits && workspace.planning()) static_cast<void>(criterion(mean, target, given_variance));
  const at::Tensor& variance =
      mean.dim() == given_variance.dim() ? given_variance : given_variance.unsqueeze(-1);
  const std::int64_t reduction = fulmen::detail::enum_of(criterion.reduction);
  at::Tensor& clamped = workspace.take(kept.variance, variance.sizes(), variance);
  direct::clamp_min(clamped, variance, criterion.eps);
  at::Tensor& difference = take_common(workspace, kept.difference, mean, target);
  direct::sub(difference, mean, target);
  at::Tensor& terms = take_terms(workspace, kept, reduction, difference, clamped);
  direct::mul(terms, difference, difference);
  direct::div(terms, terms, clamped);
  at::Tensor& log_variance = workspace.take(kept.log_variance, clamped.sizes(), clamped);
  direct::log(log_variance, clamped);
  direct::add(terms, log_variance, terms);
  workspace.release(kept.log_variance);
  direct::mul(terms, terms, number(kept.half, 0.5, terms));
  if (criterion.full)
    direct::add(terms, terms, number(kept.constant, 0.5 * std::log(2 * std::numbers::pi), terms));
  return reduce_terms(workspace, kept, reduction);
}

FULMEN_INLINE void gaussian_backward(const GaussianNLL& criterion, GaussianKept& kept, Workspace& workspace,
                                     const at::Tensor& mean, const at::Tensor& given_variance,
                                     bool of_variance, const at::Tensor& seed) {
  const std::int64_t reduction =
      backward_reduction("GaussianNLL", fulmen::detail::enum_of(criterion.reduction), kept.loss);
  const at::Tensor &variance = *kept.variance, &difference = *kept.difference;
  const at::Tensor& share = share_of_terms(workspace, kept.share, seed, reduction, mean.numel());
  at::Tensor& inverse = workspace.take(kept.inverse, variance.sizes(), variance);
  direct::div(inverse, share, variance);
  at::Tensor& gradient = take_common(workspace, kept.gradient, difference, variance);
  direct::mul(gradient, difference, inverse);
  if (of_variance) {
    // share/2 · (1/v - d²/v²), added up where a variance is that of several means.
    at::Tensor& terms = workspace.take(kept.per_variance, mean.sizes(), gradient);
    direct::mul(terms, difference, gradient);
    direct::div(terms, terms, variance);
    direct::sub(terms, inverse, terms);
    direct::mul(terms, terms, number(kept.half, 0.5, terms));
    at::Tensor& out = workspace.take(kept.variance_gradient, given_variance.sizes(), given_variance);
    if (given_variance.sizes().equals(mean.sizes())) {
      out.copy_(terms);
    } else {
      at::DimVector over;
      for (std::int64_t i = 0; i < mean.dim(); ++i) {
        if (variance.size(i) != mean.size(i)) over.push_back(i);
      }
      const bool keeps = given_variance.dim() == mean.dim();
      if (over.empty())
        out.copy_(terms.view(given_variance.sizes()));
      else
        direct::sum(out, terms, over, keeps);
    }
    workspace.release(kept.per_variance);
  }
  workspace.release(kept.inverse);
  workspace.release(kept.share);
  workspace.release(kept.variance);
  workspace.release(kept.difference);
}

}  // namespace detail
#endif

}  // namespace fulmen::nn

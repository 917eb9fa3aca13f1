// The rules of the criteria for classes.
#pragma once

#include <fulmen/compiled.hpp>
#include <fulmen/criteria/classification.hpp>
#include <fulmen/nn/criterion_rule.hpp>
#include <fulmen/nn/reduction.hpp>

#include <cstdint>

#if FULMEN_BODIES
#include <ATen/core/Reduction.h>
#include <ATen/ops/_log_softmax.h>
#include <ATen/ops/_log_softmax_backward_data.h>
#include <ATen/ops/_log_softmax_backward_data_cpu_dispatch.h>
#include <ATen/ops/_log_softmax_cpu_dispatch.h>
#include <ATen/ops/binary_cross_entropy.h>
#include <ATen/ops/binary_cross_entropy_backward.h>
#include <ATen/ops/binary_cross_entropy_backward_cpu_dispatch.h>
#include <ATen/ops/binary_cross_entropy_cpu_dispatch.h>
#include <ATen/ops/log_sigmoid_forward.h>
#include <ATen/ops/log_sigmoid_forward_cpu_dispatch.h>
#include <ATen/ops/multi_margin_loss.h>
#include <ATen/ops/multi_margin_loss_backward.h>
#include <ATen/ops/multi_margin_loss_backward_cpu_dispatch.h>
#include <ATen/ops/multi_margin_loss_cpu_dispatch.h>
#include <ATen/ops/multilabel_margin_loss_backward.h>
#include <ATen/ops/multilabel_margin_loss_backward_cpu_dispatch.h>
#include <ATen/ops/multilabel_margin_loss_forward.h>
#include <ATen/ops/multilabel_margin_loss_forward_cpu_dispatch.h>
#include <ATen/ops/nll_loss2d_backward.h>
#include <ATen/ops/nll_loss2d_backward_cpu_dispatch.h>
#include <ATen/ops/nll_loss2d_forward.h>
#include <ATen/ops/nll_loss2d_forward_cpu_dispatch.h>
#include <ATen/ops/nll_loss_backward.h>
#include <ATen/ops/nll_loss_backward_cpu_dispatch.h>
#include <ATen/ops/nll_loss_forward.h>
#include <ATen/ops/nll_loss_forward_cpu_dispatch.h>
#include <ATen/ops/soft_margin_loss.h>
#include <ATen/ops/soft_margin_loss_backward.h>

#include <bit>
#include <cmath>
#include <limits>
#include <optional>
#include <tuple>
#include <type_traits>
#endif

namespace fulmen::nn {

namespace detail {

/// What ATen's kernels for class indices keep: they take N×C or N×C×H×W.
struct NllKept {
  Buffer total_weight, images, targets, image_loss, image_gradient;
};

}  // namespace detail

/// Up to some size, softmax, loss and gradient are computed in one loop of our own, exact to a few units in
/// the last place; else by the kernels that autograd calls.
template <>
struct CriterionRule<CrossEntropy> {
  struct Kept {
    Buffer loss, log_probabilities, log_gradient, gradient, share;
    detail::NllKept nll;
    Buffer softmax;  // of the loop; becomes the gradient
    // With class probabilities, or smoothed labels.
    Buffer probabilities, terms, sum, rows, row_gradient;
    detail::Number smooth;
    bool by_loop = false;
  };
  static Buffer& forward(const CrossEntropy& criterion, Kept& kept, const LossPass<>& pass);
  static Buffer* backward(const CrossEntropy& criterion, Kept& kept, const LossPass<>& pass);
};

template <>
struct CriterionRule<NLL> {
  struct Kept {
    Buffer loss, gradient;
    detail::NllKept nll;
  };
  static Buffer& forward(const NLL& criterion, Kept& kept, const LossPass<>& pass);
  static Buffer* backward(const NLL& criterion, Kept& kept, const LossPass<>& pass);
};

template <>
struct CriterionRule<BCE> {
  using Kept = detail::TermsKept;
  static Buffer& forward(const BCE& criterion, Kept& kept, const LossPass<>& pass);
  static Buffer* backward(const BCE& criterion, Kept& kept, const LossPass<>& pass);
};

template <>
struct CriterionRule<BCEWithLogits> {
  struct Kept : detail::TermsKept {
    Buffer log_sigmoid, scratch, sigmoid, weighted;
    detail::Number one, count;
  };
  static Buffer& forward(const BCEWithLogits& criterion, Kept& kept, const LossPass<>& pass);
  static Buffer* backward(const BCEWithLogits& criterion, Kept& kept, const LossPass<>& pass);
};

template <>
struct CriterionRule<MultiMargin> {
  struct Kept {
    Buffer loss, gradient;
  };
  static Buffer& forward(const MultiMargin& criterion, Kept& kept, const LossPass<>& pass);
  static Buffer* backward(const MultiMargin& criterion, Kept& kept, const LossPass<>& pass);
};

template <>
struct CriterionRule<MultiLabelMargin> {
  struct Kept {
    Buffer loss, gradient, is_target;
  };
  static Buffer& forward(const MultiLabelMargin& criterion, Kept& kept, const LossPass<>& pass);
  static Buffer* backward(const MultiLabelMargin& criterion, Kept& kept, const LossPass<>& pass);
};

/// The gradient is sigmoid(x) - target, as that of BCEWithLogits: what autograd's chain comes to.
template <>
struct CriterionRule<MultiLabelSoftMargin> {
  using Kept = detail::TermsKept;
  static Buffer& forward(const MultiLabelSoftMargin& criterion, Kept& kept, const LossPass<>& pass);
  static Buffer* backward(const MultiLabelSoftMargin& criterion, Kept& kept, const LossPass<>& pass);
};

template <>
struct CriterionRule<SoftMargin> {
  using Kept = detail::TermsKept;
  static Buffer& forward(const SoftMargin& criterion, Kept& kept, const LossPass<>& pass);
  static Buffer* backward(const SoftMargin& criterion, Kept& kept, const LossPass<>& pass);
};

#if FULMEN_BODIES
namespace detail {

/// e^x for x from -87 to 0, without branches: the power of two that is next, times the Taylor series of what
/// remains (at most ln(2)/2, so that its ninth term is below the last bit).
inline float exp_of_small(float x) {
  const auto n = static_cast<std::int32_t>(x * 1.44269504f - 0.5f);
  const auto whole = static_cast<float>(n);
  const float r =
      (x - whole * 0.693359375f) + whole * 2.12194440e-4f;  // ln(2) in two parts, the first one exact
  float series = 1.0f / 5040;
  series = series * r + 1.0f / 720;
  series = series * r + 1.0f / 120;
  series = series * r + 1.0f / 24;
  series = series * r + 1.0f / 6;
  series = series * r + 0.5f;
  series = series * r + 1.0f;
  series = series * r + 1.0f;
  return series * std::bit_cast<float>((n + 127) << 23);
}

/// e^x in place. @param small whether all are from -87 to 0
template <class T>
void exp_all(T* values, std::int64_t count, bool small) {
  std::int64_t i = 0;
  if constexpr (std::is_same_v<T, float>) {
    // By a number that is known, so that compilers make vector instructions of it even where they are not to
    // spend code on loops.
    constexpr std::int64_t step = 8;
    for (; small && i + step <= count; i += step) {
      for (std::int64_t j = 0; j < step; ++j) values[i + j] = exp_of_small(values[i + j]);
    }
  }
  for (; i < count; ++i) values[i] = std::exp(values[i]);
}

/// Options of a cross entropy, and its sums.
template <class T>
struct CrossEntropyLoop {
  const T* weight;  // or a null pointer
  std::int64_t ignore_index, classes;
  T smoothing;
  double loss = 0, total = 0;

  /// Softmax of all rows. @return whether all targets are classes
  bool forward(const T* logits, const std::int64_t* targets, std::int64_t rows, T* softmax) {
    std::int64_t bad = 0;
    bool small = true;
    for (std::int64_t i = 0; i < rows; ++i) {
      const T* const x = logits + i * classes;
      T* const shifted = softmax + i * classes;
      T most = x[0], least = x[0], sum = x[0];
      for (std::int64_t c = 1; c < classes; ++c) {
        most = x[c] > most ? x[c] : most;
        least = x[c] < least ? x[c] : least;
        sum += x[c];  // not a number if one of them is none
      }
      small = small && sum == sum && least - most > -87;
      for (std::int64_t c = 0; c < classes; ++c) shifted[c] = x[c] - most;
    }
    // The value at the target is read before it is overwritten.
    for (std::int64_t i = 0; i < rows; ++i) {
      const std::int64_t target = targets[i];
      if (target == ignore_index) continue;
      if (target < 0 || target >= classes) {
        ++bad;
        continue;
      }
      const T* const shifted = softmax + i * classes;
      const double w = weight == nullptr ? 1.0 : static_cast<double>(weight[target]);
      loss -= w * static_cast<double>((1 - smoothing) * shifted[target]);
      total += w;
      if (smoothing > 0) {
        double sum = 0;
        for (std::int64_t c = 0; c < classes; ++c) sum += static_cast<double>(shifted[c]);
        loss -= sum * static_cast<double>(smoothing / static_cast<T>(classes));
      }
    }
    if (bad > 0) return false;
    exp_all(softmax, rows * classes, small);
    for (std::int64_t i = 0; i < rows; ++i) {
      T* const p = softmax + i * classes;
      T sum = 0;
      for (std::int64_t c = 0; c < classes; ++c) sum += p[c];
      const T inverse = 1 / sum;
      for (std::int64_t c = 0; c < classes; ++c) p[c] *= inverse;
      const std::int64_t target = targets[i];
      if (target != ignore_index) {
        loss += (weight == nullptr ? 1.0 : static_cast<double>(weight[target])) *
                static_cast<double>(std::log(sum));
      }
    }
    return true;
  }

  /// Makes of the softmax the gradient. @param share of the loss's gradient, for a row of weight 1
  void backward(const std::int64_t* targets, std::int64_t rows, T share, T* gradient) const {
    for (std::int64_t i = 0; i < rows; ++i) {
      T* const g = gradient + i * classes;
      const std::int64_t target = targets[i];
      if (target == ignore_index) {
        for (std::int64_t c = 0; c < classes; ++c) g[c] = 0;
        continue;
      }
      const T scale = weight == nullptr ? share : share * weight[target];
      if (smoothing > 0) {
        const T even = smoothing / static_cast<T>(classes);
        for (std::int64_t c = 0; c < classes; ++c) g[c] = (g[c] - even) * scale;
        g[target] -= (1 - smoothing) * scale;
      } else {
        for (std::int64_t c = 0; c < classes; ++c) g[c] *= scale;
        g[target] -= scale;
      }
    }
  }
};

/// Whether to compute a cross entropy by CrossEntropyLoop. ATen's log_softmax goes through rows that do not
/// fill its vectors element by element; it wins where rows are long, and has threads where there is much to
/// do.
inline bool loop_is_faster(const CrossEntropy& criterion, const at::Tensor& x, const at::Tensor& t) {
  if (!x.is_cpu() || !x.is_contiguous() || criterion.reduction == Reduction::none) return false;
  if (x.dim() == 2 ? t.dim() != 1 || t.size(0) != x.size(0) : x.dim() != 1 || t.dim() != 0) return false;
  if (t.scalar_type() != at::kLong || !t.is_cpu() || !t.is_contiguous()) return false;
  const std::int64_t classes = x.size(-1), count = x.numel();
  if (count == 0) return false;
  if (x.scalar_type() == at::kFloat) {
    if (count > (classes < 16 ? 32768 : 256)) return false;
  } else if (x.scalar_type() == at::kDouble) {
    if (count > (classes < 16 ? 16384 : 256)) return false;
  } else {
    return false;
  }
  if (criterion.label_smoothing < 0 || criterion.label_smoothing > 1) return false;
  if (!criterion.weight.defined()) return true;
  return criterion.label_smoothing == 0 && criterion.weight.dim() == 1 &&
         criterion.weight.size(0) == classes && criterion.weight.dtype() == x.dtype() &&
         criterion.weight.is_contiguous();
}

template <class T>
bool loop_forward(const CrossEntropy& criterion, const at::Tensor& x, const at::Tensor& t,
                  at::Tensor& softmax, at::Tensor& loss, at::Tensor& total) {
  const std::int64_t classes = x.size(-1);
  CrossEntropyLoop<T> loop{criterion.weight.defined() ? criterion.weight.const_data_ptr<T>() : nullptr,
                           criterion.ignore_index, classes, static_cast<T>(criterion.label_smoothing)};
  if (!loop.forward(x.const_data_ptr<T>(), t.const_data_ptr<std::int64_t>(), t.numel(),
                    softmax.mutable_data_ptr<T>()))
    return false;
  const double value = criterion.reduction == Reduction::mean ? loop.loss / loop.total : loop.loss;
  *loss.mutable_data_ptr<T>() = static_cast<T>(value);
  *total.mutable_data_ptr<T>() = static_cast<T>(loop.total);
  return true;
}
template <class T>
void loop_backward(const CrossEntropy& criterion, const at::Tensor& t, const at::Tensor& seed,
                   const at::Tensor& total, const at::Tensor& gradient) {
  const CrossEntropyLoop<T> loop{criterion.weight.defined() ? criterion.weight.const_data_ptr<T>() : nullptr,
                                 criterion.ignore_index, gradient.size(-1),
                                 static_cast<T>(criterion.label_smoothing)};
  T share = *seed.const_data_ptr<T>();
  if (criterion.reduction == Reduction::mean) share /= *total.const_data_ptr<T>();
  loop.backward(t.const_data_ptr<std::int64_t>(), t.numel(), share, gradient.mutable_data_ptr<T>());
}

/// Options of the two criteria that ATen's nll_loss serves.
struct NllOptions {
  const at::Tensor& weight;
  std::int64_t reduction, ignore_index;
};

inline bool is_image(const at::Tensor& x) { return x.dim() > 2; }

/// N×C×d1×… and its target as N×C×1×(d1…), as ATen takes them; four dimensions as they are.
FULMEN_INLINE void as_images(Workspace& workspace, NllKept& kept, const at::Tensor& x, const at::Tensor& t) {
  if (x.dim() == 4) {
    workspace.hold(kept.images, x);
    workspace.hold(kept.targets, t);
  } else {
    const std::int64_t n = x.size(0), height = x.numel() > 0 ? 1 : 0,
                       width = x.numel() > 0 ? x.numel() / (n * x.size(1)) : 0;
    workspace.hold(kept.images, x.contiguous().view({n, x.size(1), height, width}));
    workspace.hold(kept.targets, t.contiguous().view({n, height, width}));
  }
}

/// What nll_loss_nd computes. `check` is called where shapes do not fit, for the criterion's own message.
template <class Check>
void nll_forward(Workspace& workspace, NllKept& kept, Buffer& loss, const at::Tensor& x, const at::Tensor& t,
                 const NllOptions& options, Check&& check) {
  const bool fits = x.dim() == 1 || (x.dim() > 1 && t.dim() > 0 && x.size(0) == t.size(0) &&
                                     (x.dim() <= 2 || t.sizes().slice(1).equals(x.sizes().slice(2))));
  if (!fits) check();
  at::Tensor& total = workspace.take(kept.total_weight, {}, x);
  const std::optional<at::Tensor> weight = fulmen::detail::given(options.weight);
  if (!is_image(x)) {
    at::Tensor& out = workspace.take(
        loss, options.reduction == at::Reduction::None && x.dim() == 2 ? t.sizes() : at::IntArrayRef(), x);
    if (x.is_cpu()) [[likely]]
      at::cpu::nll_loss_forward_out(out, total, x, t, weight, options.reduction, options.ignore_index);
    else
      at::nll_loss_forward_out(out, total, x, t, weight, options.reduction, options.ignore_index);
    return;
  }
  as_images(workspace, kept, x, t);
  at::Tensor& out =
      workspace.take(loss, options.reduction == at::Reduction::None ? t.sizes() : at::IntArrayRef(), x);
  at::Tensor image_loss = options.reduction == at::Reduction::None ? out.view(kept.targets->sizes()) : out;
  if (x.is_cpu()) [[likely]] {
    at::cpu::nll_loss2d_forward_out(image_loss, total, *kept.images, *kept.targets, weight, options.reduction,
                                    options.ignore_index);
  } else {
    at::nll_loss2d_forward_out(image_loss, total, *kept.images, *kept.targets, weight, options.reduction,
                               options.ignore_index);
  }
  workspace.release(kept.images);
  workspace.release(kept.targets);
}

FULMEN_INLINE at::Tensor& nll_backward(Workspace& workspace, NllKept& kept, Buffer& gradient,
                                       const at::Tensor& seed, const at::Tensor& x, const at::Tensor& t,
                                       const NllOptions& options) {
  at::Tensor& out = workspace.take(gradient, x.sizes(), x);
  const std::optional<at::Tensor> weight = fulmen::detail::given(options.weight);
  const at::Tensor& total = *kept.total_weight;
  if (!is_image(x)) {
    if (x.is_cpu()) [[likely]]
      at::cpu::nll_loss_backward_out(out, seed, x, t, weight, options.reduction, options.ignore_index, total);
    else
      at::nll_loss_backward_out(out, seed, x, t, weight, options.reduction, options.ignore_index, total);
  } else {
    as_images(workspace, kept, x, t);
    at::Tensor image = out.view(kept.images->sizes());
    image.zero_();  // the kernel writes to the targets only
    if (x.is_cpu()) [[likely]] {
      at::cpu::nll_loss2d_backward_out(image, seed, *kept.images, *kept.targets, weight, options.reduction,
                                       options.ignore_index, total);
    } else {
      at::nll_loss2d_backward_out(image, seed, *kept.images, *kept.targets, weight, options.reduction,
                                  options.ignore_index, total);
    }
    workspace.release(kept.images);
    workspace.release(kept.targets);
  }
  workspace.release(kept.total_weight);
  return out;
}

inline std::int64_t class_dim(const at::Tensor& x) { return x.dim() == 1 ? 0 : 1; }

/// A weight for each class, to be multiplied with x.
inline at::Tensor spread_over(const at::Tensor& x, const at::Tensor& weight) {
  at::DimVector sizes(static_cast<std::size_t>(x.dim()), 1);
  sizes[static_cast<std::size_t>(class_dim(x))] = weight.size(0);
  return weight.view(sizes);
}

inline void log_softmax(at::Tensor& out, const at::Tensor& x) {
  if (x.is_cpu()) [[likely]]
    at::cpu::_log_softmax_out(out, x, class_dim(x), false);
  else
    at::_log_softmax_out(out, x, class_dim(x), false);
}

using CrossEntropyKept = CriterionRule<CrossEntropy>::Kept;

/// By class probabilities: -sum(log_p · target · weight).
FULMEN_INLINE Buffer& probabilities_forward(const CrossEntropy& criterion, CrossEntropyKept& kept,
                                            Workspace& workspace, const at::Tensor& log_p,
                                            const at::Tensor& t) {
  const std::int64_t reduction = fulmen::detail::enum_of(criterion.reduction);
  const std::int64_t classes = log_p.size(class_dim(log_p));
  const at::Tensor* factors = &t;
  if (criterion.label_smoothing > 0) {
    at::Tensor& smoothed = workspace.take(kept.probabilities, t.sizes(), t);
    direct::mul(smoothed, t, number(kept.smooth, 1 - criterion.label_smoothing, t));
    smoothed.add_(criterion.label_smoothing / static_cast<double>(classes));
    factors = &smoothed;
  }
  at::Tensor& terms = take_common(workspace, kept.terms, log_p, t);
  direct::mul(terms, log_p, *factors);
  if (criterion.weight.defined()) direct::mul(terms, terms, spread_over(log_p, criterion.weight));
  if (reduction == at::Reduction::None) {
    at::DimVector sizes(log_p.sizes().begin(), log_p.sizes().end());
    sizes.erase(sizes.begin() + class_dim(log_p));
    at::Tensor& loss = workspace.take(kept.loss, sizes, terms);
    direct::sum(loss, terms, class_dim(log_p));
    direct::neg(loss, loss);
  } else {
    at::Tensor& sum = workspace.take(kept.sum, {}, terms);
    direct::sum(sum, terms);
    const std::int64_t rows = reduction == at::Reduction::Mean ? log_p.numel() / classes : 1;
    if (log_p.numel() == 0 && reduction == at::Reduction::Mean) {
      workspace.take(kept.loss, {}, terms).fill_(std::numeric_limits<double>::quiet_NaN());
    } else {
      share_of(workspace, kept.loss, sum, static_cast<double>(rows), /*negative=*/true);
    }
    workspace.release(kept.sum);
  }
  workspace.release(kept.terms);
  return kept.loss;
}

/// By class indices and evenly by all classes: (1 - s) · nll + s/C · -sum(log_p · weight).
FULMEN_INLINE Buffer& smoothed_forward(const CrossEntropy& criterion, CrossEntropyKept& kept,
                                       Workspace& workspace, const at::Tensor& log_p, const at::Tensor& t) {
  const std::int64_t reduction = fulmen::detail::enum_of(criterion.reduction), dim = class_dim(log_p);
  at::Tensor& rows = workspace.take(kept.rows, t.sizes(), log_p);
  if (criterion.weight.defined()) {
    at::Tensor& terms = workspace.take(kept.terms, log_p.sizes(), log_p);
    direct::mul(terms, log_p, spread_over(log_p, criterion.weight));
    direct::sum(rows, terms, dim);
    workspace.release(kept.terms);
  } else {
    direct::sum(rows, log_p, dim);
  }
  direct::neg(rows, rows);
  rows.masked_fill_(t == criterion.ignore_index, 0.0);
  const at::Tensor& loss = *kept.loss;
  const double even = criterion.label_smoothing / static_cast<double>(log_p.size(dim));
  loss.mul_(1 - criterion.label_smoothing);
  if (reduction == at::Reduction::None) {
    loss.add_(rows, even);
  } else {
    at::Tensor& sum = workspace.take(kept.sum, {}, log_p);
    direct::sum(sum, rows);
    if (reduction == at::Reduction::Mean) direct::div(sum, sum, *kept.nll.total_weight);
    loss.add_(sum, even);
    workspace.release(kept.sum);
  }
  workspace.release(kept.rows);
  return kept.loss;
}

/// Adds to the gradient of log_p what comes from all classes.
FULMEN_INLINE void smoothed_backward(const CrossEntropy& criterion, CrossEntropyKept& kept,
                                     Workspace& workspace, const at::Tensor& share, const at::Tensor& t,
                                     at::Tensor& log_gradient) {
  const std::int64_t dim = class_dim(log_gradient);
  at::Tensor& rows = workspace.take(kept.row_gradient, t.sizes(), log_gradient);
  direct::differs(rows, t, static_cast<double>(criterion.ignore_index));
  direct::mul(rows, rows, share);
  if (criterion.weight.defined()) {
    log_gradient.addcmul_(rows.unsqueeze(dim), spread_over(log_gradient, criterion.weight), -1);
  } else {
    direct::sub(log_gradient, log_gradient, rows.unsqueeze(dim));
  }
  workspace.release(kept.row_gradient);
}

}  // namespace detail

FULMEN_INLINE Buffer& CriterionRule<CrossEntropy>::forward(const CrossEntropy& criterion, Kept& kept,
                                                           const LossPass<>& pass) {
  Workspace& workspace = pass.workspace;
  const at::Tensor &x = pass.output(), &t = pass.target();
  kept.by_loop = detail::loop_is_faster(criterion, x, t);
  if (kept.by_loop) [[likely]] {
    at::Tensor& softmax = workspace.take(kept.softmax, x.sizes(), x);
    at::Tensor& loss = workspace.take(kept.loss, {}, x);
    at::Tensor& total = workspace.take(kept.nll.total_weight, {}, x);
    const bool good = x.scalar_type() == at::kFloat
                          ? detail::loop_forward<float>(criterion, x, t, softmax, loss, total)
                          : detail::loop_forward<double>(criterion, x, t, softmax, loss, total);
    if (!good) static_cast<void>(criterion(x, t));  // throws, and says which target it is
    return kept.loss;
  }
  const bool by_probabilities = x.sizes().equals(t.sizes());
  // What no path below can take is the criterion's to complain about.
  if (x.dim() == 0 || criterion.label_smoothing > 1 ||
      (by_probabilities && (!at::isFloatingType(t.scalar_type()) || criterion.ignore_index >= 0)) ||
      (criterion.weight.defined() &&
       (criterion.weight.dim() != 1 || criterion.weight.size(0) != x.size(detail::class_dim(x))))) {
    static_cast<void>(criterion(x, t));
  }
  at::Tensor& log_p = workspace.take(kept.log_probabilities, x.sizes(), x);
  detail::log_softmax(log_p, x);
  if (by_probabilities) return detail::probabilities_forward(criterion, kept, workspace, log_p, t);
  detail::nll_forward(
      workspace, kept.nll, kept.loss, log_p, t,
      {criterion.weight, fulmen::detail::enum_of(criterion.reduction), criterion.ignore_index},
      [&] { static_cast<void>(criterion(x, t)); });
  if (criterion.label_smoothing > 0) return detail::smoothed_forward(criterion, kept, workspace, log_p, t);
  return kept.loss;
}

FULMEN_INLINE Buffer* CriterionRule<CrossEntropy>::backward(const CrossEntropy& criterion, Kept& kept,
                                                            const LossPass<>& pass) {
  Workspace& workspace = pass.workspace;
  const at::Tensor &t = pass.target(), &seed = *pass.seed;
  if (kept.by_loop) [[likely]] {
    const at::Tensor& gradient = *kept.softmax;
    if (gradient.scalar_type() == at::kFloat)
      detail::loop_backward<float>(criterion, t, seed, *kept.nll.total_weight, gradient);
    else
      detail::loop_backward<double>(criterion, t, seed, *kept.nll.total_weight, gradient);
    workspace.release(kept.nll.total_weight);
    return &kept.softmax;
  }
  const std::int64_t reduction =
      detail::backward_reduction("CrossEntropy", fulmen::detail::enum_of(criterion.reduction), kept.loss);
  const at::Tensor& log_p = *kept.log_probabilities;
  at::Tensor* log_gradient = nullptr;
  if (log_p.sizes().equals(t.sizes())) {
    log_gradient = &workspace.take(kept.log_gradient, log_p.sizes(), log_p);
    const bool divides = reduction == at::Reduction::Mean && log_p.numel() > 0;
    const std::int64_t rows = divides ? log_p.numel() / log_p.size(detail::class_dim(log_p)) : 1;
    detail::direct::mul(
        *log_gradient, criterion.label_smoothing > 0 ? *kept.probabilities : t,
        detail::share_of(workspace, kept.share, seed, static_cast<double>(rows), /*negative=*/true));
    if (criterion.weight.defined())
      detail::direct::mul(*log_gradient, *log_gradient, detail::spread_over(log_p, criterion.weight));
    workspace.release(kept.probabilities);
  } else if (criterion.label_smoothing > 0) {
    const double s = criterion.label_smoothing,
                 even = s / static_cast<double>(log_p.size(detail::class_dim(log_p)));
    at::Tensor& share = workspace.take(kept.share, {}, seed);
    detail::direct::mul(share, seed, detail::number(kept.smooth, even, seed));
    if (reduction == at::Reduction::Mean) detail::direct::div(share, share, *kept.nll.total_weight);
    log_gradient = &detail::nll_backward(workspace, kept.nll, kept.log_gradient, seed * (1 - s), log_p, t,
                                         {criterion.weight, reduction, criterion.ignore_index});
    detail::smoothed_backward(criterion, kept, workspace, share, t, *log_gradient);
  } else {
    log_gradient = &detail::nll_backward(workspace, kept.nll, kept.log_gradient, seed, log_p, t,
                                         {criterion.weight, reduction, criterion.ignore_index});
  }
  workspace.release(kept.share);
  at::Tensor& gradient = workspace.take(kept.gradient, log_p.sizes(), log_p);
  const std::int64_t dim = detail::class_dim(log_p);
  if (log_p.is_cpu()) [[likely]]
    at::cpu::_log_softmax_backward_data_out(gradient, *log_gradient, log_p, dim, log_p.scalar_type());
  else
    at::_log_softmax_backward_data_out(gradient, *log_gradient, log_p, dim, log_p.scalar_type());
  workspace.release(kept.log_gradient);
  workspace.release(kept.log_probabilities);
  return &kept.gradient;
}

FULMEN_INLINE Buffer& CriterionRule<NLL>::forward(const NLL& criterion, Kept& kept, const LossPass<>& pass) {
  detail::nll_forward(
      pass.workspace, kept.nll, kept.loss, pass.output(), pass.target(),
      {criterion.weight, fulmen::detail::enum_of(criterion.reduction), criterion.ignore_index},
      [&] { static_cast<void>(criterion(pass.output(), pass.target())); });
  return kept.loss;
}
FULMEN_INLINE Buffer* CriterionRule<NLL>::backward(const NLL& criterion, Kept& kept, const LossPass<>& pass) {
  const std::int64_t reduction =
      detail::backward_reduction("NLL", fulmen::detail::enum_of(criterion.reduction), kept.loss);
  detail::nll_backward(pass.workspace, kept.nll, kept.gradient, *pass.seed, pass.output(), pass.target(),
                       {criterion.weight, reduction, criterion.ignore_index});
  return &kept.gradient;
}

FULMEN_INLINE Buffer& CriterionRule<BCE>::forward(const BCE& criterion, Kept& kept, const LossPass<>& pass) {
  const at::Tensor &x = pass.output(), &t = pass.target();
  fulmen::detail::same_shape("BCE", x, t);
  const std::int64_t reduction = fulmen::detail::enum_of(criterion.reduction);
  const auto weight =
      criterion.weight.defined() ? std::optional(criterion.weight.expand_as(t)) : std::nullopt;
  at::Tensor& terms =
      pass.workspace.take(reduction == at::Reduction::None ? kept.loss : kept.terms, x.sizes(), x);
  if (x.is_cpu()) [[likely]]
    at::cpu::binary_cross_entropy_out(terms, x, t, weight, at::Reduction::None);
  else
    at::binary_cross_entropy_out(terms, x, t, weight, at::Reduction::None);
  return detail::reduce_terms(pass.workspace, kept, reduction);
}
FULMEN_INLINE Buffer* CriterionRule<BCE>::backward(const BCE& criterion, Kept& kept, const LossPass<>& pass) {
  const at::Tensor &x = pass.output(), &t = pass.target();
  const std::int64_t reduction =
      detail::backward_reduction("BCE", fulmen::detail::enum_of(criterion.reduction), kept.loss);
  const auto weight =
      criterion.weight.defined() ? std::optional(criterion.weight.expand_as(t)) : std::nullopt;
  at::Tensor& gradient = pass.workspace.take(kept.gradient, x.sizes(), x);
  if (x.is_cpu()) [[likely]]
    at::cpu::binary_cross_entropy_backward_out(gradient, *pass.seed, x, t, weight, reduction);
  else
    at::binary_cross_entropy_backward_out(gradient, *pass.seed, x, t, weight, reduction);
  return &kept.gradient;
}

FULMEN_INLINE Buffer& CriterionRule<BCEWithLogits>::forward(const BCEWithLogits& criterion, Kept& kept,
                                                            const LossPass<>& pass) {
  Workspace& workspace = pass.workspace;
  const at::Tensor &x = pass.output(), &t = pass.target();
  fulmen::detail::same_shape("BCEWithLogits", x, t);
  // ATen computes in place, in the target's type.
  if (x.dtype() != t.dtype()) return detail::keep_loss(workspace, kept.loss, criterion(x, t));
  const std::int64_t reduction = fulmen::detail::enum_of(criterion.reduction);
  const at::Tensor& one = detail::number(kept.one, 1, x);
  at::Tensor& log_sigmoid = workspace.take(kept.log_sigmoid, x.sizes(), x);
  at::Tensor& scratch = workspace.take(kept.scratch, x.sizes(), x);
  if (x.is_cpu()) [[likely]]
    at::cpu::log_sigmoid_forward_out(log_sigmoid, scratch, x);
  else
    at::log_sigmoid_forward_out(log_sigmoid, scratch, x);
  if (criterion.pos_weight.defined()) {
    detail::direct::mul(scratch, criterion.pos_weight - 1, t);
    detail::direct::add(scratch, scratch, one);
    detail::direct::mul(log_sigmoid, log_sigmoid, scratch);
  }
  workspace.release(kept.scratch);
  at::Tensor& terms = detail::take_terms(workspace, kept, reduction, x, t);
  detail::direct::sub(terms, one, t);
  detail::direct::mul(terms, terms, x);
  detail::direct::sub(terms, terms, log_sigmoid);
  workspace.release(kept.log_sigmoid);
  if (criterion.weight.defined()) detail::direct::mul(terms, terms, criterion.weight);
  return detail::reduce_terms(workspace, kept, reduction);
}
FULMEN_INLINE Buffer* CriterionRule<BCEWithLogits>::backward(const BCEWithLogits& criterion, Kept& kept,
                                                             const LossPass<>& pass) {
  Workspace& workspace = pass.workspace;
  const at::Tensor &x = pass.output(), &t = pass.target();
  const std::int64_t reduction =
      detail::backward_reduction("BCEWithLogits", fulmen::detail::enum_of(criterion.reduction), kept.loss);
  at::Tensor& gradient = detail::take_common(workspace, kept.gradient, x, t);
  if (criterion.pos_weight.defined()) {
    at::Tensor& weighted = workspace.take(kept.weighted, x.sizes(), gradient);
    at::Tensor& sigmoid = workspace.take(kept.sigmoid, x.sizes(), x);
    detail::direct::mul(weighted, criterion.pos_weight, t);
    detail::direct::add(gradient, weighted, detail::number(kept.one, 1, x));
    detail::direct::sub(gradient, gradient, t);
    detail::direct::sigmoid(sigmoid, x);
    detail::direct::mul(gradient, gradient, sigmoid);
    detail::direct::sub(gradient, gradient, weighted);
    workspace.release(kept.weighted);
    workspace.release(kept.sigmoid);
  } else {
    detail::direct::sigmoid(gradient, x);
    detail::direct::sub(gradient, gradient, t);
  }
  detail::direct::mul(gradient, gradient, *pass.seed);
  if (criterion.weight.defined()) detail::direct::mul(gradient, gradient, criterion.weight);
  if (reduction == at::Reduction::Mean) {
    detail::direct::div(gradient, gradient,
                        detail::number(kept.count, static_cast<double>(x.numel()), gradient));
  }
  return detail::as_output(workspace, kept.gradient, kept.gradient_as_output, x);
}

FULMEN_INLINE Buffer& CriterionRule<MultiMargin>::forward(const MultiMargin& criterion, Kept& kept,
                                                          const LossPass<>& pass) {
  const at::Tensor &x = pass.output(), &t = pass.target();
  const std::int64_t reduction = fulmen::detail::enum_of(criterion.reduction);
  const auto weight = fulmen::detail::given(criterion.weight);
  at::Tensor& loss =
      pass.workspace.take(kept.loss, reduction == at::Reduction::None ? t.sizes() : at::IntArrayRef(), x);
  if (x.is_cpu()) [[likely]]
    at::cpu::multi_margin_loss_out(loss, x, t, criterion.p, criterion.margin, weight, reduction);
  else
    at::multi_margin_loss_out(loss, x, t, criterion.p, criterion.margin, weight, reduction);
  return kept.loss;
}
FULMEN_INLINE Buffer* CriterionRule<MultiMargin>::backward(const MultiMargin& criterion, Kept& kept,
                                                           const LossPass<>& pass) {
  const at::Tensor &x = pass.output(), &t = pass.target();
  const std::int64_t reduction =
      detail::backward_reduction("MultiMargin", fulmen::detail::enum_of(criterion.reduction), kept.loss);
  const auto weight = fulmen::detail::given(criterion.weight);
  at::Tensor& gradient = pass.workspace.take(kept.gradient, x.sizes(), x);
  if (x.is_cpu()) [[likely]] {
    at::cpu::multi_margin_loss_backward_out(gradient, *pass.seed, x, t, criterion.p, criterion.margin, weight,
                                            reduction);
  } else {
    at::multi_margin_loss_backward_out(gradient, *pass.seed, x, t, criterion.p, criterion.margin, weight,
                                       reduction);
  }
  return &kept.gradient;
}

FULMEN_INLINE Buffer& CriterionRule<MultiLabelMargin>::forward(const MultiLabelMargin& criterion, Kept& kept,
                                                               const LossPass<>& pass) {
  const at::Tensor &x = pass.output(), &t = pass.target();
  const std::int64_t reduction = fulmen::detail::enum_of(criterion.reduction);
  at::Tensor& loss = pass.workspace.take(
      kept.loss, reduction == at::Reduction::None && x.dim() == 2 ? x.sizes().slice(0, 1) : at::IntArrayRef(),
      x);
  at::Tensor& is_target = pass.workspace.take(kept.is_target, t.sizes(), x);
  if (x.is_cpu()) [[likely]]
    at::cpu::multilabel_margin_loss_forward_out(loss, is_target, x, t, reduction);
  else
    at::multilabel_margin_loss_forward_out(loss, is_target, x, t, reduction);
  return kept.loss;
}
FULMEN_INLINE Buffer* CriterionRule<MultiLabelMargin>::backward(const MultiLabelMargin& criterion, Kept& kept,
                                                                const LossPass<>& pass) {
  const at::Tensor &x = pass.output(), &t = pass.target();
  const std::int64_t reduction =
      detail::backward_reduction("MultiLabelMargin", fulmen::detail::enum_of(criterion.reduction), kept.loss);
  at::Tensor& gradient = pass.workspace.take(kept.gradient, x.sizes(), x);
  if (x.is_cpu()) [[likely]] {
    at::cpu::multilabel_margin_loss_backward_out(gradient, *pass.seed, x, t, reduction, *kept.is_target);
  } else {
    at::multilabel_margin_loss_backward_out(gradient, *pass.seed, x, t, reduction, *kept.is_target);
  }
  pass.workspace.release(kept.is_target);
  return &kept.gradient;
}

FULMEN_INLINE Buffer& CriterionRule<MultiLabelSoftMargin>::forward(const MultiLabelSoftMargin& criterion,
                                                                   Kept& kept, const LossPass<>& pass) {
  return detail::keep_loss(pass.workspace, kept.loss, criterion(pass.output(), pass.target()));
}
FULMEN_INLINE Buffer* CriterionRule<MultiLabelSoftMargin>::backward(const MultiLabelSoftMargin& criterion,
                                                                    Kept& kept, const LossPass<>& pass) {
  Workspace& workspace = pass.workspace;
  const at::Tensor &x = pass.output(), &t = pass.target();
  const std::int64_t reduction = detail::backward_reduction(
      "MultiLabelSoftMargin", fulmen::detail::enum_of(criterion.reduction), kept.loss);
  const double count = static_cast<double>(reduction == at::Reduction::Mean ? x.numel()
                                           : x.dim() == 0                   ? 1
                                                                            : x.size(-1));
  at::Tensor& gradient = detail::take_common(workspace, kept.gradient, x, t);
  detail::direct::sigmoid(gradient, x);
  detail::direct::sub(gradient, gradient, t);
  if (criterion.weight.defined()) detail::direct::mul(gradient, gradient, criterion.weight);
  detail::direct::mul(gradient, gradient, detail::share_of(workspace, kept.share, *pass.seed, count));
  workspace.release(kept.share);
  return detail::as_output(workspace, kept.gradient, kept.gradient_as_output, x);
}

FULMEN_INLINE Buffer& CriterionRule<SoftMargin>::forward(const SoftMargin& criterion, Kept& kept,
                                                         const LossPass<>& pass) {
  const at::Tensor &x = pass.output(), &t = pass.target();
  fulmen::detail::same_shape("SoftMargin", x, t);
  const std::int64_t reduction = fulmen::detail::enum_of(criterion.reduction);
  at::Tensor& terms = detail::take_terms(pass.workspace, kept, reduction, x, t);
  at::soft_margin_loss_out(terms, x, t, at::Reduction::None);
  return detail::reduce_terms(pass.workspace, kept, reduction);
}
FULMEN_INLINE Buffer* CriterionRule<SoftMargin>::backward(const SoftMargin& criterion, Kept& kept,
                                                          const LossPass<>& pass) {
  const at::Tensor &x = pass.output(), &t = pass.target();
  const std::int64_t reduction =
      detail::backward_reduction("SoftMargin", fulmen::detail::enum_of(criterion.reduction), kept.loss);
  at::Tensor& gradient = detail::take_common(pass.workspace, kept.gradient, x, t);
  at::soft_margin_loss_backward_out(gradient, *pass.seed, x, t, reduction);
  return detail::as_output(pass.workspace, kept.gradient, kept.gradient_as_output, x);
}
#endif

}  // namespace fulmen::nn

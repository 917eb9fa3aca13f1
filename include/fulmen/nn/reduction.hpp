// What the rules of criteria share: how the terms of a loss become one number, and which share of its
// gradient each of them gets.
#pragma once

#include <fulmen/compiled.hpp>
#include <fulmen/criteria/reduction.hpp>
#include <fulmen/nn/criterion_rule.hpp>

#include <ATen/core/Tensor.h>

#include <cstdint>

#if FULMEN_BODIES
#include <fulmen/shape_text.hpp>

#include <ATen/core/Reduction.h>
#include <ATen/ops/abs.h>
#include <ATen/ops/abs_cpu_dispatch.h>
#include <ATen/ops/add.h>
#include <ATen/ops/add_cpu_dispatch.h>
#include <ATen/ops/clamp_min.h>
#include <ATen/ops/clamp_min_cpu_dispatch.h>
#include <ATen/ops/div.h>
#include <ATen/ops/div_cpu_dispatch.h>
#include <ATen/ops/exp.h>
#include <ATen/ops/exp_cpu_dispatch.h>
#include <ATen/ops/full.h>
#include <ATen/ops/gt.h>
#include <ATen/ops/gt_cpu_dispatch.h>
#include <ATen/ops/log.h>
#include <ATen/ops/log_cpu_dispatch.h>
#include <ATen/ops/mean.h>
#include <ATen/ops/mean_cpu_dispatch.h>
#include <ATen/ops/mul.h>
#include <ATen/ops/mul_cpu_dispatch.h>
#include <ATen/ops/ne.h>
#include <ATen/ops/ne_cpu_dispatch.h>
#include <ATen/ops/neg.h>
#include <ATen/ops/neg_cpu_dispatch.h>
#include <ATen/ops/result_type.h>
#include <ATen/ops/sgn.h>
#include <ATen/ops/sgn_cpu_dispatch.h>
#include <ATen/ops/sigmoid.h>
#include <ATen/ops/sigmoid_cpu_dispatch.h>
#include <ATen/ops/sub.h>
#include <ATen/ops/sub_cpu_dispatch.h>
#include <ATen/ops/sum.h>
#include <ATen/ops/sum_cpu_dispatch.h>

#include <stdexcept>
#endif

namespace fulmen::nn::detail {

/// A tensor without dimensions that holds a number, kept as long as that stays the same.
struct Number {
  at::Tensor tensor{};
  double value = 0;
};
const at::Tensor& number(Number& kept, double value, const at::Tensor& like);

/// What the rule of a criterion keeps whose loss has a term for each element of the output.
struct TermsKept {
  Buffer loss, terms, gradient, gradient_as_output, share;
};

/// A tensor of the shape of `x`, and of the type that an operation of `x` and `t` gives.
at::Tensor& take_common(Workspace& workspace, Buffer& buffer, const at::Tensor& x, const at::Tensor& t);

/// Where the terms are to be written: the loss itself, if it is not reduced.
template <class Kept>
at::Tensor& take_terms(Workspace& workspace, Kept& kept, std::int64_t reduction, const at::Tensor& x,
                       const at::Tensor& t) {
  return take_common(workspace, reduction == at::Reduction::None ? kept.loss : kept.terms, x, t);
}
/// The loss of these terms.
Buffer& reduce_terms(Workspace& workspace, Buffer& loss, Buffer& terms, std::int64_t reduction);
template <class Kept>
Buffer& reduce_terms(Workspace& workspace, Kept& kept, std::int64_t reduction) {
  return reduce_terms(workspace, kept.loss, kept.terms, reduction);
}
/// A loss that ATen has allocated.
Buffer& keep_loss(Workspace& workspace, Buffer& loss, const at::Tensor& value);

/// How backward is to take a reduction: of one number, none is as good as a sum. @throws std::runtime_error
/// where the loss is several
std::int64_t backward_reduction(const char* criterion, std::int64_t reduction, const Buffer& loss);

/// seed / count, with another sign if negative.
const at::Tensor& share_of(Workspace& workspace, Buffer& share, const at::Tensor& seed, double count,
                           bool negative = false);
/// The gradient of each of the terms, if there are so many of them.
inline const at::Tensor& share_of_terms(Workspace& workspace, Buffer& share, const at::Tensor& seed,
                                        std::int64_t reduction, std::int64_t count, bool negative = false) {
  return reduction == at::Reduction::Mean || negative
             ? share_of(workspace, share, seed,
                        reduction == at::Reduction::Mean ? static_cast<double>(count) : 1.0, negative)
             : seed;
}

/// The gradient as autograd hands it on: of the type of the output.
Buffer* as_output(Workspace& workspace, Buffer& gradient, Buffer& converted, const at::Tensor& output);

#if FULMEN_BODIES
/// ATen's functions of these names; on the CPU without the dispatcher, which costs as much as a small kernel.
namespace direct {

inline void add(at::Tensor& out, const at::Tensor& a, const at::Tensor& b) {
  a.is_cpu() ? at::cpu::add_out(out, a, b) : at::add_out(out, a, b);
}
inline void sub(at::Tensor& out, const at::Tensor& a, const at::Tensor& b) {
  a.is_cpu() ? at::cpu::sub_out(out, a, b) : at::sub_out(out, a, b);
}
inline void mul(at::Tensor& out, const at::Tensor& a, const at::Tensor& b) {
  a.is_cpu() ? at::cpu::mul_out(out, a, b) : at::mul_out(out, a, b);
}
inline void div(at::Tensor& out, const at::Tensor& a, const at::Tensor& b) {
  a.is_cpu() ? at::cpu::div_out(out, a, b) : at::div_out(out, a, b);
}
inline void neg(at::Tensor& out, const at::Tensor& a) {
  a.is_cpu() ? at::cpu::neg_out(out, a) : at::neg_out(out, a);
}
inline void abs(at::Tensor& out, const at::Tensor& a) {
  a.is_cpu() ? at::cpu::abs_out(out, a) : at::abs_out(out, a);
}
inline void exp(at::Tensor& out, const at::Tensor& a) {
  a.is_cpu() ? at::cpu::exp_out(out, a) : at::exp_out(out, a);
}
inline void log(at::Tensor& out, const at::Tensor& a) {
  a.is_cpu() ? at::cpu::log_out(out, a) : at::log_out(out, a);
}
inline void sgn(at::Tensor& out, const at::Tensor& a) {
  a.is_cpu() ? at::cpu::sgn_out(out, a) : at::sgn_out(out, a);
}
inline void sigmoid(at::Tensor& out, const at::Tensor& a) {
  a.is_cpu() ? at::cpu::sigmoid_out(out, a) : at::sigmoid_out(out, a);
}
inline void clamp_min(at::Tensor& out, const at::Tensor& a, double b) {
  a.is_cpu() ? at::cpu::clamp_min_out(out, a, b) : at::clamp_min_out(out, a, b);
}
/// 1 where a is greater, or not the same; of the type of `out`.
inline void greater(at::Tensor& out, const at::Tensor& a, double b) {
  a.is_cpu() ? at::cpu::gt_out(out, a, b) : at::gt_out(out, a, b);
}
inline void differs(at::Tensor& out, const at::Tensor& a, double b) {
  a.is_cpu() ? at::cpu::ne_out(out, a, b) : at::ne_out(out, a, b);
}
inline void mean(at::Tensor& out, const at::Tensor& a, at::IntArrayRef over = {}) {
  a.is_cpu() ? at::cpu::mean_out(out, a, over) : at::mean_out(out, a, over);
}
inline void sum(at::Tensor& out, const at::Tensor& a, at::IntArrayRef over = {}, bool keeps = false) {
  a.is_cpu() ? at::cpu::sum_out(out, a, over, keeps) : at::sum_out(out, a, over, keeps);
}

}  // namespace direct

FULMEN_INLINE const at::Tensor& number(Number& kept, double value, const at::Tensor& like) {
  if (!kept.tensor.defined() || kept.value != value || kept.tensor.dtype() != like.dtype() ||
      kept.tensor.device() != like.device()) [[unlikely]] {
    kept.tensor = at::full({}, value, like.options());
    kept.value = value;
  }
  return kept.tensor;
}

FULMEN_INLINE at::Tensor& take_common(Workspace& workspace, Buffer& buffer, const at::Tensor& x,
                                      const at::Tensor& t) {
  if (x.dtype() == t.dtype()) [[likely]]
    return workspace.take(buffer, x.sizes(), x);
  return workspace.take(buffer, x.sizes(), x.options().dtype(at::result_type(x, t)));
}

FULMEN_INLINE Buffer& reduce_terms(Workspace& workspace, Buffer& loss, Buffer& terms,
                                   std::int64_t reduction) {
  if (reduction == at::Reduction::None) return loss;
  at::Tensor& value = workspace.take(loss, {}, *terms);
  if (reduction == at::Reduction::Mean)
    direct::mean(value, *terms);
  else
    direct::sum(value, *terms);
  workspace.release(terms);
  return loss;
}

FULMEN_INLINE Buffer& keep_loss(Workspace& workspace, Buffer& loss, const at::Tensor& value) {
  workspace.take(loss, value.sizes(), value).copy_(value);
  return loss;
}

FULMEN_INLINE std::int64_t backward_reduction(const char* criterion, std::int64_t reduction,
                                              const Buffer& loss) {
  if (reduction != at::Reduction::None) [[likely]]
    return reduction;
  if (loss->numel() != 1) {
    fail<std::runtime_error>(
        "{}: the loss has shape {}, as its reduction is none; expected a scalar to go back from (mean or "
        "sum)",
        criterion, fulmen::detail::shape_text(loss->sizes()));
  }
  return at::Reduction::Sum;
}

FULMEN_INLINE const at::Tensor& share_of(Workspace& workspace, Buffer& share, const at::Tensor& seed,
                                         double count, bool negative) {
  at::Tensor& out = workspace.take(share, {}, seed);
  const double divisor = negative ? -count : count;
  if (seed.is_cpu() && seed.scalar_type() == at::kFloat) [[likely]] {
    *out.mutable_data_ptr<float>() = *seed.const_data_ptr<float>() / static_cast<float>(divisor);
  } else if (seed.is_cpu() && seed.scalar_type() == at::kDouble) {
    *out.mutable_data_ptr<double>() = *seed.const_data_ptr<double>() / divisor;
  } else {
    at::div_out(out, seed, at::full({}, divisor, seed.options().dtype(at::kDouble).device(at::kCPU)));
  }
  return out;
}

FULMEN_INLINE Buffer* as_output(Workspace& workspace, Buffer& gradient, Buffer& converted,
                                const at::Tensor& output) {
  if (gradient->dtype() == output.dtype()) [[likely]]
    return &gradient;
  workspace.take(converted, output.sizes(), output).copy_(*gradient);
  workspace.release(gradient);
  return &converted;
}
#endif

}  // namespace fulmen::nn::detail

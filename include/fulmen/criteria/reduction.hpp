// What all criteria share: how the losses of a batch become one, and the check that output and target fit.
#pragma once

#include <fulmen/compiled.hpp>
#include <fulmen/error.hpp>

#include <ATen/core/Reduction.h>
#include <ATen/core/Tensor.h>

#include <cstdint>
#include <optional>

#if FULMEN_BODIES
#include <fulmen/shape_text.hpp>

#include <stdexcept>
#endif

namespace fulmen {

/// What becomes of the single losses: kept as they are (`none`), averaged or added up.
enum class Reduction : std::int64_t {
  none = at::Reduction::None,
  mean = at::Reduction::Mean,
  sum = at::Reduction::Sum
};

namespace detail {

/// The number by which ATen's kernels know a reduction.
constexpr std::int64_t enum_of(Reduction reduction) { return static_cast<std::int64_t>(reduction); }

inline at::Tensor reduce(const at::Tensor& loss, Reduction reduction) {
  if (reduction == Reduction::mean) return loss.mean();
  return reduction == Reduction::sum ? loss.sum() : loss;
}

/// An undefined tensor is an option that was not given.
inline std::optional<at::Tensor> given(const at::Tensor& option) {
  return option.defined() ? std::optional<at::Tensor>(option) : std::nullopt;
}

[[noreturn, gnu::cold]] void fail_shapes(const char* criterion, const char* second, const at::Tensor& output,
                                         const at::Tensor& other);

/// ATen broadcasts [N, 1] against [N] without a word, and the loss of N×N pairs looks like one.
inline void same_shape(const char* criterion, const at::Tensor& output, const at::Tensor& other,
                       const char* second = "target") {
  if (!output.sizes().equals(other.sizes())) [[unlikely]]
    fail_shapes(criterion, second, output, other);
}

}  // namespace detail

#if FULMEN_BODIES
FULMEN_INLINE void detail::fail_shapes(const char* criterion, const char* second, const at::Tensor& output,
                                       const at::Tensor& other) {
  fail<std::invalid_argument>(
      "{}: the output has shape {}, the {} {}; expected one shape for both (they would be broadcast)",
      criterion, shape_text(output.sizes()), second, shape_text(other.sizes()));
}
#endif

}  // namespace fulmen

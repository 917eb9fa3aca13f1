// The predictor that normalises intensities before inference, and may undo it afterwards.
#pragma once

#include <fulmen/compiled.hpp>
#include <fulmen/predict/spatial.hpp>

#include <concepts>
#include <utility>
#include <vector>

#if FULMEN_BODIES
#include <ATen/TensorOperators.h>
#include <ATen/ops/ones_like.h>
#include <ATen/ops/tensor.h>
#include <ATen/ops/var_mean.h>
#include <ATen/ops/where.h>
#include <c10/core/DefaultDtype.h>
#include <c10/core/ScalarType.h>
#include <c10/core/ScalarTypeToTypeMeta.h>

#include <algorithm>
#include <cstdint>
#include <numeric>
#include <stdexcept>
#endif

namespace fulmen {

namespace detail {

/// Mean and standard deviation that broadcast over a tensor.
struct Statistics {
  at::Tensor mean, std;
};

/// Normalises in place of the handle, with fixed numbers or the tensor's own.
Statistics normalize(at::Tensor& x, const std::vector<double>& mean, const std::vector<double>& std,
                     bool each_channel);

at::Tensor denormalized(const at::Tensor& prediction, const Statistics& of);

}  // namespace detail

/// (input - mean) / std, and with `denormalize` prediction · std + mean.
///
/// With no mean and no std given, each sample's own are taken: over all of it, or per channel; the standard deviation
/// is the population's, and 1 where it is 0. Inputs that are not floating point become so. All tensors of the inputs
/// are normalised; to denormalise, each tensor of the prediction takes the statistics of the inputs' first one.
/// @throws std::invalid_argument if mean and std are not both given, do not fit the channels, or std holds a 0 Source:
/// torchvision.transforms.Normalize; monai.transforms.NormalizeIntensity.
struct Normalize {
  std::vector<double> mean{};  ///< one, or one per channel (dimension 1); empty: each sample's own
  std::vector<double> std{};   ///< as mean
  bool per_channel = false;    ///< where each sample's own are taken: of each channel
  bool denormalize = false;    ///< for predictions on the scale of the inputs

  template <class Inputs, class Infer>
    requires std::invocable<Infer, detail::Owned<Inputs>>
  auto operator()(const Inputs& inputs, Infer&& infer) const {
    detail::Owned<Inputs> normal(inputs);
    detail::Statistics first;
    for_each_tensor(normal, [&](at::Tensor& t) {
      const detail::Statistics of = detail::normalize(t, mean, std, per_channel);
      if (!first.mean.defined()) first = of;
    });
    auto prediction = infer(std::move(normal));
    if (denormalize) {
      for_each_tensor(prediction, [&](at::Tensor& t) { t = detail::denormalized(t, first); });
    }
    return prediction;
  }
};

#if FULMEN_BODIES
namespace detail {

/// One number, or one for each channel, in the shape of a tensor's dimensions.
inline at::Tensor per_channel(const std::vector<double>& values, const at::Tensor& like, const char* name) {
  const auto count = static_cast<std::int64_t>(values.size());
  const std::int64_t channels = like.dim() > 1 ? like.size(1) : 1;
  if (count != 1 && count != channels) {
    fail<std::invalid_argument>("Normalize: {} has {} values, expected 1, or {} as there are channels", name,
                                count, channels);
  }
  std::vector<std::int64_t> shape(static_cast<std::size_t>(like.dim()), 1);
  if (count > 1) shape[1] = count;
  return at::tensor(values, like.options()).view(shape);
}

inline Statistics statistics_of(const at::Tensor& x, bool per_channel) {
  std::vector<std::int64_t> dims(
      static_cast<std::size_t>(std::max<std::int64_t>(x.dim() - (per_channel ? 2 : 1), 0)));
  if (dims.empty()) {
    fail<std::invalid_argument>(
        "Normalize: the input has shape {}, expected {} and more to take the mean of, or fixed mean and "
        "std",
        shape_text(x.sizes()), per_channel ? "N, C" : "N");
  }
  std::iota(dims.begin(), dims.end(), per_channel ? 2 : 1);
  auto [variance, mean] = at::var_mean(x, dims, /*correction=*/0, /*keepdim=*/true);
  const at::Tensor std = variance.sqrt();
  return {mean, at::where(std == 0, at::ones_like(std), std)};  // an image of one colour becomes 0
}

FULMEN_INLINE Statistics normalize(at::Tensor& x, const std::vector<double>& mean,
                                   const std::vector<double>& std, bool each_channel) {
  if (mean.empty() != std.empty() || std::count(std.begin(), std.end(), 0.0) > 0) {
    fail<std::invalid_argument>(
        "Normalize: mean has {} values and std {}, expected both or neither, and no std of 0", mean.size(),
        std.size());
  }
  if (!at::isFloatingType(x.scalar_type()) && !at::isComplexType(x.scalar_type())) {
    x = x.to(c10::typeMetaToScalarType(c10::get_default_dtype()));
  }
  Statistics of = mean.empty() ? statistics_of(x, each_channel)
                               : Statistics{per_channel(mean, x, "mean"), per_channel(std, x, "std")};
  x = (x - of.mean) / of.std;
  return of;
}

FULMEN_INLINE at::Tensor denormalized(const at::Tensor& prediction, const Statistics& of) {
  if (prediction.dim() != of.mean.dim() ||
      (of.mean.dim() > 1 && of.mean.size(1) > 1 && prediction.size(1) != of.mean.size(1))) {
    fail(
        "Normalize: infer gave a prediction of shape {}, expected dimensions and channels as the input's, so "
        "that it can be "
        "denormalised by statistics of shape {}",
        shape_text(prediction.sizes()), shape_text(of.mean.sizes()));
  }
  return prediction * of.std.to(prediction.device()) + of.mean.to(prediction.device());
}

}  // namespace detail
#endif

}  // namespace fulmen

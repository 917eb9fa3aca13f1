// The predictor that pads images to a size the network can halve often enough, and crops the prediction.
#pragma once

#include <fulmen/compiled.hpp>
#include <fulmen/predict/spatial.hpp>

#include <concepts>
#include <cstddef>
#include <cstdint>
#include <stdexcept>
#include <utility>
#include <vector>

namespace fulmen {

namespace detail {

Padding padding_to(at::IntArrayRef image, const std::vector<std::int64_t>& multiple, bool symmetric);

/// What of a prediction belongs to an image of such a shape that was padded so.
at::Tensor without_padding(at::Tensor prediction, at::IntArrayRef image, const Padding& padding);

}  // namespace detail

/// Pads N×C×spatial inputs to multiples of a number of pixels, and crops what belongs to the padding off the
/// prediction, which may have other channels and a proportional spatial size.
///
/// The prediction is a view of what infer gave. All tensors of inputs and prediction are treated alike.
/// Errors: std::invalid_argument for options and inputs, std::runtime_error for predictions that do not fit.
/// Source: monai.transforms.DivisiblePad with its inverse.
template <std::size_t Dim>
struct PadToMultiple {
  static_assert(Dim >= 1 && Dim <= 3, "fulmen: PadToMultiple<Dim> works on 1, 2 or 3 spatial dimensions");

  PerAxis<std::int64_t, Dim> multiple;
  PadMode mode = PadMode::constant;
  double value = 0;       ///< for PadMode::constant
  bool symmetric = true;  ///< half of it before, half after (the odd one after); false: all after

  template <class Inputs, class Infer>
    requires std::invocable<Infer, detail::Owned<Inputs>>
  auto operator()(const Inputs& inputs, Infer&& infer) const {
    detail::Owned<Inputs> padded(inputs);
    std::vector<std::int64_t> image;
    detail::Padding padding;
    for_each_tensor(padded, [&](at::Tensor& t) {
      detail::check_image(t, Dim, "PadToMultiple");
      if (image.empty()) {
        image = t.sizes().vec();
        padding = detail::padding_to(image, multiple, symmetric);
      }
      if (t.sizes().slice(2) != at::IntArrayRef(image).slice(2)) {
        fail<std::invalid_argument>(
            "PadToMultiple: the inputs have shapes {} and {}, expected the same spatial sizes",
            detail::shape_text(image), detail::shape_text(t.sizes()));
      }
      t = padding.pad(t, mode, value, "PadToMultiple");
    });
    auto prediction = infer(std::move(padded));
    for_each_tensor(prediction, [&](at::Tensor& t) { t = detail::without_padding(t, image, padding); });
    return prediction;
  }
};

#if FULMEN_BODIES
namespace detail {

FULMEN_INLINE Padding padding_to(at::IntArrayRef image, const std::vector<std::int64_t>& multiple,
                                 bool symmetric) {
  Padding padding;
  for (std::size_t axis = 0; axis < multiple.size(); ++axis) {
    const std::int64_t step = multiple[axis];
    if (step < 1) {
      fail<std::invalid_argument>("PadToMultiple: multiple is {} along axis {}, expected at least 1", step,
                                  axis);
    }
    const std::int64_t missing = (step - image[axis + 2] % step) % step, before = symmetric ? missing / 2 : 0;
    padding.before.push_back(before);
    padding.after.push_back(missing - before);
  }
  return padding;
}

FULMEN_INLINE at::Tensor without_padding(at::Tensor prediction, at::IntArrayRef image,
                                         const Padding& padding) {
  if (padding.empty()) return prediction;
  const std::size_t dims = padding.before.size();
  if (prediction.dim() != static_cast<std::int64_t>(dims) + 2) {
    fail(
        "PadToMultiple<{}>: infer gave a prediction of shape {}, expected {} dimensions (N, C, then {} "
        "spatial ones)",
        dims, shape_text(prediction.sizes()), dims + 2, dims);
  }
  for (std::size_t axis = 0; axis < dims; ++axis) {
    const auto dim = static_cast<std::int64_t>(axis) + 2;
    const std::int64_t padded = padding.before[axis] + image[axis + 2] + padding.after[axis],
                       size = prediction.size(dim);
    const auto in_prediction = [&](std::int64_t position) {
      return scaled(position, padded, size, "PadToMultiple",
                    "pad at the end alone (.symmetric = false), or an image of other size");
    };
    prediction = prediction.narrow(dim, in_prediction(padding.before[axis]), in_prediction(image[axis + 2]));
  }
  return prediction;
}

}  // namespace detail
#endif

}  // namespace fulmen

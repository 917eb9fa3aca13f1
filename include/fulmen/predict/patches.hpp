// The predictor that slides a window over an image or a volume and puts the predictions together by weight.
#pragma once

#include <fulmen/compiled.hpp>
#include <fulmen/predict/spatial.hpp>

#include <c10/core/ScalarType.h>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <iterator>
#include <optional>
#include <stdexcept>
#include <utility>
#include <vector>

#if FULMEN_BODIES
#include <ATen/TensorOperators.h>
#include <ATen/ops/arange.h>
#include <ATen/ops/cat.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/minimum.h>
#include <ATen/ops/ones.h>
#include <ATen/ops/zeros.h>
#include <c10/core/ScalarTypeToTypeMeta.h>
#endif

namespace fulmen {

/// How much each pixel of a patch counts where patches overlap.
enum class PatchWeights {
  constant,  ///< all the same
  gaussian,  ///< exp(-(distance from the middle)² / 2σ²), σ = sigma_scale · size along each axis, at least 0.001
  linear,  ///< 1, 2, …, n/2, …, 2, 1 along each axis, multiplied
};

namespace detail {

/// Where the patches of one batch of images lie.
class PatchGrid {
 public:
  /// @param image shape of the input as it is: N, C, spatial sizes
  /// @param size, stride per spatial axis; a size of -1 is all of the image
  PatchGrid(at::IntArrayRef image, std::vector<std::int64_t> size, const std::vector<double>& overlap,
            const std::optional<std::vector<std::int64_t>>& stride, std::int64_t batch_size, bool may_pad);

  std::size_t dims() const { return size_.size(); }
  const std::vector<std::int64_t>& size() const { return size_; }
  const std::vector<std::int64_t>& image() const { return image_; }
  const Padding& padding() const { return padding_; }
  std::int64_t samples() const { return samples_; }
  /// Patches of one sample.
  std::int64_t windows() const { return windows_; }
  /// How often infer is called.
  std::int64_t calls() const { return (samples_ * windows_ + batch_size_ - 1) / batch_size_; }
  /// The patches of a call: the first, and how many.
  std::int64_t first(std::int64_t call) const { return call * batch_size_; }
  std::int64_t count(std::int64_t call) const {
    return std::min(batch_size_, samples_ * windows_ - first(call));
  }

  /// Whether some pixel lies in more than one patch.
  bool overlaps() const;

  /// Where a window begins along each axis; the last axis runs fastest.
  std::vector<std::int64_t> start(std::int64_t window) const;

  /// The patches of a call, cut out of a padded image: a view if it is one patch.
  at::Tensor cut(const at::Tensor& padded, std::int64_t call) const;

 private:
  std::int64_t stride_of(std::size_t axis, double overlap) const;

  std::vector<std::int64_t> starts(std::size_t axis, std::int64_t image, std::int64_t stride) const;

  std::int64_t samples_, batch_size_, windows_ = 1;
  std::vector<std::int64_t> image_, size_;
  Padding padding_;
  std::vector<std::vector<std::int64_t>> starts_;
};

/// The weighted mean of the predictions of overlapping patches.
class PatchMerger {
 public:
  /// @param weights undefined, or a map of the prediction's spatial sizes that takes the place of `kind`
  PatchMerger(const PatchGrid& grid, PatchWeights kind, const std::vector<double>& sigma_scale,
              const at::Tensor& weights, const at::Tensor& first);

  /// The predictions of the next call. @throws std::runtime_error if their shape is not that of the first, or not as
  /// many
  void add(const at::Tensor& predictions);

  /// The whole prediction, without what belongs to the padding.
  at::Tensor finish();

 private:
  std::int64_t in_prediction(std::int64_t position, std::size_t axis) const;
  at::Tensor region(at::Tensor whole, std::int64_t window) const;

  const PatchGrid& grid_;
  bool overlaps_;
  at::ScalarType type_;
  std::vector<std::int64_t> shape_;  // of a call's predictions
  at::Tensor mean_, sum_, weights_;
  std::int64_t call_ = 0;
};

/// What Patches::forward gives back: each item the patches of one call, cut when it is asked for.
template <class Inputs>
class PatchRange {
 public:
  PatchRange(Inputs padded, PatchGrid grid) : padded_(std::move(padded)), grid_(std::move(grid)) {}

  class Iterator {
   public:
    using reference = Inputs;
    using value_type = Inputs;
    using difference_type = std::ptrdiff_t;
    using iterator_concept = std::input_iterator_tag;

    Iterator(const PatchRange* of, std::int64_t call) : of_(of), call_(call) {}
    Inputs operator*() const {
      Inputs patches = of_->padded_;
      for_each_tensor(patches, [&](at::Tensor& t) { t = of_->grid_.cut(t, call_); });
      return patches;
    }
    Iterator& operator++() {
      ++call_;
      return *this;
    }
    void operator++(int) { ++call_; }
    bool operator==(const Iterator& other) const { return call_ == other.call_; }

   private:
    const PatchRange* of_;
    std::int64_t call_;
  };

  Iterator begin() const { return {this, 0}; }
  Iterator end() const { return {this, size()}; }
  /// How often infer is called.
  std::int64_t size() const { return grid_.calls(); }
  const PatchGrid& grid() const { return grid_; }

 private:
  Inputs padded_;
  PatchGrid grid_;
};

}  // namespace detail

/// Slides a window over images (Dim 2: N×C×H×W) or volumes (Dim 3: N×C×D×H×W), runs infer on batches of patches, and
/// puts the predictions together as weighted means where patches overlap.
///
/// The last patch along an axis is moved back so that it ends with the image. Where a pixel is in one patch only, or
/// all patches agree on it, the result is that value to the bit, whatever the weights. Patches are cut one call at a
/// time.
///
/// Predictions may have other channels, and another spatial size than the patch: twice or half of it, say. Positions
/// are scaled likewise; one that falls between two pixels of the prediction is an error. The result lies on the device
/// of the predictions and has their type; half and bfloat16 are averaged in float. Without overlap any type will do.
/// Inputs and predictions may hold several tensors (tuples, and whatever else a batch may be): all are cut, and put
/// together, alike.
///
/// Errors: std::invalid_argument for options and inputs, std::runtime_error for predictions that do not fit.
/// Source: monai.inferers.sliding_window_inference, whose positions, order and weights these are.
template <std::size_t Dim>
struct Patches {
  static_assert(Dim >= 1 && Dim <= 3, "fulmen: Patches<Dim> works on 1, 2 or 3 spatial dimensions");

  PerAxis<std::int64_t, Dim> size;      ///< of a patch in pixels; -1: all of the image along that axis
  PerAxis<double, Dim> overlap = 0.25;  ///< of neighbours, as a part of size; rounded to more overlap
  std::optional<PerAxis<std::int64_t, Dim>> stride{};  ///< from patch to patch in pixels, in place of overlap
  std::int64_t batch_size = 1;                         ///< patches per call of infer, across samples
  PatchWeights weights = PatchWeights::constant;
  PerAxis<double, Dim> sigma_scale = 0.125;  ///< for PatchWeights::gaussian
  at::Tensor weight_map{};  ///< of a prediction's spatial sizes, above 0, in place of weights
  std::optional<PadMode> padding_mode =
      PadMode::constant;     ///< of an image smaller than a patch; nullopt: an error
  double padding_value = 0;  ///< for PadMode::constant

  static constexpr bool cuts_inputs = true;

  /// @return a range of calls() items like `inputs`, each with up to batch_size patches along the first dimension
  template <class Inputs>
  auto forward(const Inputs& inputs) const {
    detail::Owned<Inputs> padded(inputs);
    std::optional<detail::PatchGrid> grid;
    at::IntArrayRef first;
    for_each_tensor(inputs, [&](const at::Tensor& t) {
      detail::check_image(t, Dim, "Patches");
      if (!grid) {
        grid.emplace(t.sizes(), size, overlap, stride, batch_size, padding_mode.has_value());
        first = t.sizes();
      }
      if (t.size(0) != first[0] || t.sizes().slice(2) != first.slice(2)) {
        fail<std::invalid_argument>(
            "Patches: the inputs have shapes {} and {}, expected the same samples and spatial sizes",
            detail::shape_text(first), detail::shape_text(t.sizes()));
      }
    });
    if (!grid) fail<std::invalid_argument>("Patches: the inputs hold no tensor");
    for_each_tensor(padded, [&](at::Tensor& t) {
      t = grid->padding().pad(t, padding_mode.value_or(PadMode::constant), padding_value, "Patches");
    });
    return detail::PatchRange<detail::Owned<Inputs>>(std::move(padded), *std::move(grid));
  }

  template <class Parts, class Predictions>
  auto backward(const Parts& parts, Predictions&& predictions) const {
    const std::vector<double> sigma = sigma_scale;
    return detail::merged(predictions, "Patches", [&](const at::Tensor& first) {
      return detail::PatchMerger(parts.grid(), weights, sigma, weight_map, first);
    });
  }
};

#if FULMEN_BODIES
namespace detail {

FULMEN_INLINE PatchGrid::PatchGrid(at::IntArrayRef image, std::vector<std::int64_t> size,
                                   const std::vector<double>& overlap,
                                   const std::optional<std::vector<std::int64_t>>& stride,
                                   std::int64_t batch_size, bool may_pad)
    : samples_(image[0]),
      batch_size_(batch_size),
      image_(image.begin() + 2, image.end()),
      size_(std::move(size)) {
  if (batch_size < 1)
    fail<std::invalid_argument>("Patches: batch_size is {}, expected at least 1", batch_size);
  for (std::size_t axis = 0; axis < size_.size(); ++axis) {
    std::int64_t& patch = size_[axis];
    if (patch == -1) patch = image_[axis];
    if (patch < 1) {
      fail<std::invalid_argument>(
          "Patches: size is {} along axis {}, expected at least 1, or -1 for all of the image", patch, axis);
    }
    const std::int64_t missing = std::max<std::int64_t>(patch - image_[axis], 0);
    if (missing > 0 && !may_pad) {
      fail<std::invalid_argument>(
          "Patches: the patch is {} along axis {} and the image {}, expected a patch that fits, or a "
          "padding_mode",
          patch, axis, image_[axis]);
    }
    padding_.before.push_back(missing / 2);
    padding_.after.push_back(missing - missing / 2);
    starts_.push_back(
        starts(axis, image_[axis] + missing, stride ? (*stride)[axis] : stride_of(axis, overlap[axis])));
    windows_ *= static_cast<std::int64_t>(starts_.back().size());
  }
}

FULMEN_INLINE bool PatchGrid::overlaps() const {
  for (std::size_t axis = 0; axis < dims(); ++axis) {
    for (std::size_t i = 1; i < starts_[axis].size(); ++i) {
      if (starts_[axis][i] - starts_[axis][i - 1] < size_[axis]) return true;
    }
  }
  return false;
}

FULMEN_INLINE std::vector<std::int64_t> PatchGrid::start(std::int64_t window) const {
  std::vector<std::int64_t> origin(dims());
  for (std::size_t axis = dims(); axis-- > 0;) {
    const auto along = static_cast<std::int64_t>(starts_[axis].size());
    origin[axis] = starts_[axis][static_cast<std::size_t>(window % along)];
    window /= along;
  }
  return origin;
}

FULMEN_INLINE at::Tensor PatchGrid::cut(const at::Tensor& padded, std::int64_t call) const {
  std::vector<at::Tensor> patches;
  for (std::int64_t i = first(call); i < first(call) + count(call); ++i) {
    at::Tensor patch = padded.narrow(0, i / windows_, 1);
    const std::vector<std::int64_t> origin = start(i % windows_);
    for (std::size_t axis = 0; axis < dims(); ++axis) {
      patch = patch.narrow(static_cast<std::int64_t>(axis) + 2, origin[axis], size_[axis]);
    }
    patches.push_back(std::move(patch));
  }
  return patches.size() == 1 ? patches.front() : at::cat(patches);
}

FULMEN_INLINE std::int64_t PatchGrid::stride_of(std::size_t axis, double overlap) const {
  if (!(overlap >= 0 && overlap < 1)) {
    fail<std::invalid_argument>(
        "Patches: overlap is {} along axis {}, expected a part of the patch: at least 0 and below 1", overlap,
        axis);
  }
  return std::max<std::int64_t>(static_cast<std::int64_t>(static_cast<double>(size_[axis]) * (1 - overlap)),
                                1);
}

FULMEN_INLINE std::vector<std::int64_t> PatchGrid::starts(std::size_t axis, std::int64_t image,
                                                          std::int64_t stride) const {
  const std::int64_t patch = size_[axis];
  if (stride < 1 || stride > patch) {
    fail<std::invalid_argument>(
        "Patches: stride is {} along axis {}, expected 1 to {}, the patch's size: a longer one leaves "
        "gaps",
        stride, axis, patch);
  }
  std::vector<std::int64_t> all;
  for (std::int64_t start = 0; start + patch < image; start += stride) all.push_back(start);
  all.push_back(image - patch);
  return all;
}

/// The weights of a patch with such spatial sizes, of which the largest is 1, as float64 on the CPU.
inline at::Tensor patch_weights(at::IntArrayRef sizes, PatchWeights kind,
                                const std::vector<double>& sigma_scale) {
  at::Tensor all = at::ones({}, at::kDouble);
  for (std::size_t axis = 0; axis < sizes.size(); ++axis) {
    const auto n = sizes[axis];
    const at::Tensor i = at::arange(n, at::kDouble);
    at::Tensor along = at::ones({n}, at::kDouble);
    if (kind == PatchWeights::gaussian) {
      const double sigma = sigma_scale[axis] * static_cast<double>(n);
      if (!(sigma > 0)) {
        fail<std::invalid_argument>("Patches: sigma_scale is {} along axis {}, expected more than 0",
                                    sigma_scale[axis], axis);
      }
      along = ((i - static_cast<double>(n - 1) / 2).square() / (-2 * sigma * sigma)).exp();
    } else if (kind == PatchWeights::linear) {
      along = at::minimum(i + 1, static_cast<double>(n) - i) / static_cast<double>((n + 1) / 2);
    }
    all = all.unsqueeze(-1) * along;
  }
  // In the corners of a volume a Gaussian comes close to nothing, and a quotient of two such numbers to
  // noise.
  return kind == PatchWeights::gaussian ? all.clamp_min(1e-3) : all;
}

FULMEN_INLINE PatchMerger::PatchMerger(const PatchGrid& grid, PatchWeights kind,
                                       const std::vector<double>& sigma_scale, const at::Tensor& weights,
                                       const at::Tensor& first)
    : grid_(grid), overlaps_(grid.overlaps()), type_(first.scalar_type()) {
  const std::size_t dims = grid.dims();
  if (first.dim() != static_cast<std::int64_t>(dims) + 2) {
    fail(
        "Patches<{}>: infer gave a prediction of shape {}, expected {} dimensions (N, C, then {} spatial "
        "ones)",
        dims, shape_text(first.sizes()), dims + 2, dims);
  }
  shape_ = first.sizes().vec();
  std::vector<std::int64_t> whole{grid.samples(), first.size(1)}, one{1, 1};
  for (std::size_t axis = 0; axis < dims; ++axis) {
    const auto& padding = grid.padding();
    const std::int64_t image = grid.image()[axis] + padding.before[axis] + padding.after[axis];
    whole.push_back(in_prediction(image, axis));
    one.push_back(whole.back());
  }
  if (!overlaps_) {
    mean_ = at::empty(whole, first.options());
    return;
  }
  const auto options = first.options().dtype(summed_as(first, "Patches with overlap"));
  mean_ = at::zeros(whole, options);
  // Weights are real, also where predictions are complex.
  const auto real = options.dtype(c10::toRealValueType(c10::typeMetaToScalarType(options.dtype())));
  sum_ = at::zeros(one, real);
  const at::IntArrayRef sizes = first.sizes().slice(2);
  if (weights.defined()) {
    if (weights.sizes() != sizes || !(weights.min().item<double>() > 0)) {
      fail<std::invalid_argument>(
          "Patches: weight_map has shape {} and a smallest weight of {}, expected shape {}, the "
          "prediction's, and weights above 0",
          shape_text(weights.sizes()), weights.numel() > 0 ? weights.min().item<double>() : 0.0,
          shape_text(sizes));
    }
    weights_ = weights.to(real);
  } else {
    weights_ = patch_weights(sizes, kind, sigma_scale).to(real);
  }
}

FULMEN_INLINE void PatchMerger::add(const at::Tensor& predictions) {
  const std::int64_t first = grid_.first(call_), count = grid_.count(call_);
  shape_[0] = count;
  if (predictions.sizes() != at::IntArrayRef(shape_)) {
    fail("Patches: infer gave a prediction of shape {} for {} patches, expected {}",
         shape_text(predictions.sizes()), count, shape_text(shape_));
  }
  for (std::int64_t i = 0; i < count; ++i) {
    const std::int64_t sample = (first + i) / grid_.windows(), window = (first + i) % grid_.windows();
    const at::Tensor one = predictions.narrow(0, i, 1), mean = region(mean_.narrow(0, sample, 1), window);
    if (!overlaps_) {
      mean.copy_(one);
      continue;
    }
    if (window == 0) sum_.zero_();
    const at::Tensor sum = region(sum_, window);
    sum.add_(weights_);
    add_to_mean(mean, one, weights_ / sum);
  }
  ++call_;
}

FULMEN_INLINE at::Tensor PatchMerger::finish() {
  at::Tensor whole = mean_.to(type_);
  for (std::size_t axis = 0; axis < grid_.dims() && !grid_.padding().empty(); ++axis) {
    whole =
        whole.narrow(static_cast<std::int64_t>(axis) + 2, in_prediction(grid_.padding().before[axis], axis),
                     in_prediction(grid_.image()[axis], axis));
  }
  return whole;
}

FULMEN_INLINE std::int64_t PatchMerger::in_prediction(std::int64_t position, std::size_t axis) const {
  return scaled(position, grid_.size()[axis], shape_[axis + 2], "Patches",
                "choose stride, size and image accordingly (PadToMultiple pads an image)");
}

FULMEN_INLINE at::Tensor PatchMerger::region(at::Tensor whole, std::int64_t window) const {
  const std::vector<std::int64_t> origin = grid_.start(window);
  for (std::size_t axis = 0; axis < origin.size(); ++axis) {
    whole = whole.narrow(static_cast<std::int64_t>(axis) + 2, in_prediction(origin[axis], axis),
                         shape_[axis + 2]);
  }
  return whole;
}

}  // namespace detail
#endif

}  // namespace fulmen

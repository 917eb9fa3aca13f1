// The predictor that runs several views of the inputs, brings their predictions back and merges them.
#pragma once

#include <fulmen/compiled.hpp>
#include <fulmen/predict/range.hpp>
#include <fulmen/predict/spatial.hpp>

#include <array>
#include <concepts>
#include <cstddef>
#include <cstdint>
#include <iterator>
#include <stdexcept>
#include <tuple>
#include <utility>
#include <vector>

#if FULMEN_BODIES
#include <ATen/ops/flip.h>
#include <ATen/ops/rot90.h>
#include <ATen/ops/zeros_like.h>
#endif

namespace fulmen {

/// Mirrors along dimensions, negative ones counted from the last; along none, the image itself.
struct Flip {
  std::vector<std::int64_t> dims{};

  at::Tensor forward(const at::Tensor& x) const;
  at::Tensor inverse(const at::Tensor& y) const { return forward(y); }
};

/// Turns by k · 90° in a plane, from its first dimension to its second, after mirroring along the second if `flip`.
struct Rot90 {
  std::int64_t k = 1;
  std::array<std::int64_t, 2> dims{-2, -1};
  bool flip = false;

  at::Tensor forward(const at::Tensor& x) const;
  at::Tensor inverse(const at::Tensor& y) const;
};

/// A transform of two functions of tensors, of which the second undoes the first (or does what can be done).
template <class Forward, class Inverse>
struct Transform {
  Forward forward;
  Inverse inverse;
};
template <class Forward, class Inverse>
Transform(Forward, Inverse) -> Transform<Forward, Inverse>;

/// All 2^Dim ways to mirror the last Dim dimensions, the image itself first.
template <std::size_t Dim>
std::array<Flip, (1U << Dim)> flips() {
  std::array<Flip, (1U << Dim)> all;
  for (std::size_t i = 0; i < all.size(); ++i) {
    for (std::size_t axis = 0; axis < Dim; ++axis) {
      if ((i >> axis) & 1U) all[i].dims.push_back(-1 - static_cast<std::int64_t>(axis));
    }
  }
  return all;
}

/// The eight symmetries of the square in the last two dimensions, the image itself first.
std::array<Rot90, 8> square_symmetries();

namespace detail {

/// The mean of one tensor of all predictions.
class Averager {
 public:
  explicit Averager(const at::Tensor& first);

  void add(const at::Tensor& prediction);
  at::Tensor finish() const;

 private:
  at::ScalarType type_;
  at::Tensor mean_;
  std::int64_t count_ = 0;
};

template <class T>
concept TensorTransform = requires(const T& transform, const at::Tensor& x) {
  { transform.forward(x) } -> std::convertible_to<at::Tensor>;
  { transform.inverse(x) } -> std::convertible_to<at::Tensor>;
};

template <class T>
inline constexpr bool are_transforms = false;
template <class... T>
inline constexpr bool are_transforms<std::tuple<T...>> = (TensorTransform<T> && ...) && sizeof...(T) > 0;
template <class T>
  requires requires(const T& all) {
    { *std::begin(all) } -> TensorTransform;
  }
inline constexpr bool are_transforms<T> = true;

/// Calls `f` with the i-th transform.
template <class Transforms, class F>
void with_transform(const Transforms& all, std::size_t i, F&& f) {
  if constexpr (requires { all[i]; }) {
    f(all[i]);
  } else {
    std::apply(
        [&](const auto&... each) {
          std::size_t k = 0;
          ((k++ == i ? f(each) : void()), ...);
        },
        all);
  }
}

template <class Transforms>
std::ptrdiff_t transform_count(const Transforms& all) {
  if constexpr (requires { std::size(all); })
    return static_cast<std::ptrdiff_t>(std::size(all));
  else
    return static_cast<std::ptrdiff_t>(std::tuple_size_v<Transforms>);
}

}  // namespace detail

/// The mean of predictions, of every tensor in them: what all agree on to the bit. Half and bfloat16 are averaged in
/// float. @throws std::runtime_error if they differ in shape or are not floating point
struct MeanMerge {
  template <class Predictions>
  auto operator()(Predictions&& predictions) const {
    return detail::merged(predictions, "MeanMerge",
                          [](const at::Tensor& first) { return detail::Averager(first); });
  }
};

/// Runs infer on each transform of the inputs, undoes it on the prediction, and merges all:
/// `TestTimeAugmentation{flips<2>()}`.
///
/// A transform has forward(tensor) and inverse(tensor), as Flip, Rot90 and Transform{f, g} have; there is an array, a
/// vector or a std::tuple of them. All tensors of the inputs are transformed, all of the prediction transformed back. A
/// merge of one's own is called with a lazy range of the predictions, in the order of the transforms: each is made when
/// the range comes to it, so it need not keep them all.
///
/// @throws std::invalid_argument if there are no transforms; std::runtime_error if a prediction has not as many
/// dimensions as the inputs, for then flipping it back would mix its classes: `invert = false` leaves predictions as
/// they are
template <class Transforms, class Merge = MeanMerge>
struct TestTimeAugmentation {
  static_assert(
      detail::are_transforms<Transforms>,
      "fulmen: TestTimeAugmentation takes an array, a vector or a std::tuple of transforms: each with "
      "forward(tensor) and inverse(tensor)");

  Transforms transforms;
  Merge merge{};
  bool invert = true;

  template <class Inputs, class Infer>
    requires std::invocable<Infer&, detail::Owned<Inputs>>
  auto operator()(const Inputs& inputs, Infer&& infer) const {
    const std::ptrdiff_t count = detail::transform_count(transforms);
    if (count == 0)
      fail<std::invalid_argument>("TestTimeAugmentation: there are no transforms, expected at least one");
    std::int64_t dims = -1;
    for_each_tensor(inputs, [&](const at::Tensor& t) { dims = dims < 0 ? t.dim() : dims; });
    return merge(detail::mapped(detail::Indices{count}, [&](std::ptrdiff_t i) {
      detail::Owned<Inputs> view(inputs);
      detail::with_transform(transforms, static_cast<std::size_t>(i), [&](const auto& transform) {
        for_each_tensor(view, [&](at::Tensor& t) { t = transform.forward(t); });
      });
      auto prediction = infer(std::move(view));
      if (!invert) return prediction;
      detail::with_transform(transforms, static_cast<std::size_t>(i), [&](const auto& transform) {
        for_each_tensor(prediction, [&](at::Tensor& t) {
          if (t.dim() != dims) {
            fail(
                "TestTimeAugmentation: infer gave a prediction of shape {}, expected {} dimensions as the "
                "inputs have, or "
                "invert = false",
                detail::shape_text(t.sizes()), dims);
          }
          t = transform.inverse(t);
        });
      });
      return prediction;
    }));
  }
};
template <class Transforms>
TestTimeAugmentation(Transforms) -> TestTimeAugmentation<Transforms>;
template <class Transforms, class Merge>
TestTimeAugmentation(Transforms, Merge) -> TestTimeAugmentation<Transforms, Merge>;
template <class Transforms, class Merge>
TestTimeAugmentation(Transforms, Merge, bool) -> TestTimeAugmentation<Transforms, Merge>;

#if FULMEN_BODIES
FULMEN_INLINE at::Tensor Flip::forward(const at::Tensor& x) const {
  return dims.empty() ? x : at::flip(x, dims);
}

FULMEN_INLINE at::Tensor Rot90::forward(const at::Tensor& x) const {
  return at::rot90(flip ? at::flip(x, dims[1]) : x, k, dims);
}

FULMEN_INLINE at::Tensor Rot90::inverse(const at::Tensor& y) const {
  const at::Tensor back = at::rot90(y, -k, dims);
  return flip ? at::flip(back, dims[1]) : back;
}

FULMEN_INLINE std::array<Rot90, 8> square_symmetries() {
  std::array<Rot90, 8> all;
  for (std::size_t i = 0; i < all.size(); ++i)
    all[i] = {.k = static_cast<std::int64_t>(i % 4), .flip = i >= 4};
  return all;
}

namespace detail {

FULMEN_INLINE Averager::Averager(const at::Tensor& first)
    : type_(first.scalar_type()),
      mean_(at::zeros_like(first, first.options().dtype(summed_as(first, "MeanMerge")))) {}

FULMEN_INLINE void Averager::add(const at::Tensor& prediction) {
  if (prediction.sizes() != mean_.sizes()) {
    fail("MeanMerge: a prediction has shape {}, expected {} as the first", shape_text(prediction.sizes()),
         shape_text(mean_.sizes()));
  }
  add_to_mean(mean_, prediction, 1.0 / static_cast<double>(++count_));
}

FULMEN_INLINE at::Tensor Averager::finish() const { return mean_.to(type_); }

}  // namespace detail
#endif

}  // namespace fulmen

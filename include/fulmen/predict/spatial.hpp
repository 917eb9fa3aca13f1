// What predictors share: numbers per axis, padding, predictions that are put together tensor by tensor.
#pragma once

#include <fulmen/compiled.hpp>
#include <fulmen/data/batch.hpp>
#include <fulmen/error.hpp>
#include <fulmen/shape_text.hpp>

#include <ATen/TensorOperators.h>
#include <ATen/core/Tensor.h>
#include <c10/core/ScalarType.h>

#include <algorithm>
#include <array>
#include <concepts>
#include <cstdint>
#include <iterator>
#include <optional>
#include <string>
#include <tuple>
#include <type_traits>
#include <utility>
#include <vector>

#if FULMEN_BODIES
#include <ATen/ops/pad.h>

#include <numeric>
#include <string_view>
#endif

namespace fulmen {

/// One number for each spatial axis, in the order of the tensor's dimensions (H, W or D, H, W): `96` for all of them,
/// or `{32, 96, 96}`.
template <class T, std::size_t Dim>
struct PerAxis {
  std::array<T, Dim> values{};

  constexpr PerAxis() = default;
  constexpr PerAxis(T all) { values.fill(all); }
  template <std::convertible_to<T>... Each>
    requires(sizeof...(Each) == Dim && Dim > 1)
  constexpr PerAxis(Each... each) : values{static_cast<T>(each)...} {}

  operator std::vector<T>() const { return {values.begin(), values.end()}; }
};

/// What stands beyond an image's border; the names are torch.nn.functional.pad's.
enum class PadMode { constant, reflect, replicate, circular };

namespace detail {

/// The type itself; of a tuple of references, the tuple of values. Changing such a copy changes nobody else's tensors.
template <class T>
struct OwnedType {
  using type = T;
};
template <class... T>
struct OwnedType<std::tuple<T...>> {
  using type = std::tuple<std::remove_cvref_t<T>...>;
};
template <class T>
using Owned = typename OwnedType<std::remove_cvref_t<T>>::type;

/// `item` of a batch of `size`. @throws std::runtime_error if it is another size
at::Tensor item_of(const at::Tensor& batch, std::int64_t item, std::int64_t size, const char* who);

/// `position` pixels of an image axis in a prediction that has `out` pixels where the image has `in`.
/// @throws std::runtime_error if that is between two pixels
std::int64_t scaled(std::int64_t position, std::int64_t in, std::int64_t out, const char* who,
                    const char* hint);

/// @throws std::invalid_argument unless `x` is defined and has N, C and `dims` spatial dimensions, none of size 0
void check_image(const at::Tensor& x, std::size_t dims, const char* who);

/// How many pixels stand before the first and after the last of each spatial axis.
struct Padding {
  std::vector<std::int64_t> before, after;

  bool empty() const;

  at::Tensor pad(const at::Tensor& x, PadMode mode, double value, const char* who) const;
};

/// What sums in 16 bits would spoil is summed in 32. @throws std::runtime_error unless predictions are numbers to
/// average
at::ScalarType summed_as(const at::Tensor& prediction, const char* who);

/// One more value for a running mean of which it is `share`: its weight divided by the sum of weights so far.
///
/// What all values agree on comes out as it went in, to the bit, whatever the weights: a sum divided by the sum of
/// weights does not have that property.
template <class Share>
void add_to_mean(const at::Tensor& mean, const at::Tensor& value, const Share& share) {
  // Where both are the same infinity, their difference is not a number.
  mean.add_(((value - mean) * share).masked_fill_(mean == value, 0));
}

/// Makes one prediction of many, tensor by tensor: `make(first)` makes what takes the i-th tensor of each prediction by
/// add(tensor) and gives back the whole by finish(). Looks at one prediction at a time.
template <class Predictions, class Make>
auto merged(Predictions&& predictions, const char* who, Make&& make) {
  using Prediction = Owned<decltype(*std::begin(predictions))>;
  std::optional<Prediction> whole;
  std::vector<decltype(make(std::declval<const at::Tensor&>()))> parts;
  for (auto&& item : predictions) {
    std::size_t i = 0;
    for_each_tensor(item, [&](const at::Tensor& t) {
      if (!whole) parts.push_back(make(t));
      if (i < parts.size()) parts[i].add(t);
      ++i;
    });
    if (i != parts.size() || i == 0)
      fail("{}: a prediction holds {} tensors, expected {}", who, i, std::max<std::size_t>(parts.size(), 1));
    if (!whole) {
      whole.emplace(item);
      for_each_tensor(*whole, [](at::Tensor& t) { t.reset(); });  // its shape is all that is needed
    }
  }
  if (!whole) fail("{}: there are no predictions", who);
  std::size_t i = 0;
  for_each_tensor(*whole, [&](at::Tensor& t) { t = parts[i++].finish(); });
  return std::move(*whole);
}

}  // namespace detail

#if FULMEN_BODIES
namespace detail {

FULMEN_INLINE at::Tensor item_of(const at::Tensor& batch, std::int64_t item, std::int64_t size,
                                 const char* who) {
  if (batch.dim() == 0 || batch.size(0) != size) {
    fail("{}: infer gave a prediction of shape {}, expected {} along its first dimension", who,
         shape_text(batch.sizes()), size);
  }
  return batch.select(0, item);
}

FULMEN_INLINE std::int64_t scaled(std::int64_t position, std::int64_t in, std::int64_t out, const char* who,
                                  const char* hint) {
  if (position * out % in != 0) {
    fail(
        "{}: the prediction has {} pixels along an axis where its input has {}, so pixel {} of the input "
        "falls between two "
        "of the prediction, expected a multiple of {}: {}",
        who, out, in, position, in / std::gcd(in, out), hint);
  }
  return position * out / in;
}

FULMEN_INLINE void check_image(const at::Tensor& x, std::size_t dims, const char* who) {
  if (!x.defined() || x.dim() != static_cast<std::int64_t>(dims) + 2 || x.numel() == 0) {
    fail<std::invalid_argument>(
        "{}<{}>: the input {}, expected {} dimensions (N, C, then {} spatial ones), none of size 0", who,
        dims, x.defined() ? "has shape " + shape_text(x.sizes()) : "is an undefined tensor", dims + 2, dims);
  }
}

FULMEN_INLINE bool Padding::empty() const {
  return std::all_of(before.begin(), before.end(), [](auto n) { return n == 0; }) &&
         std::all_of(after.begin(), after.end(), [](auto n) { return n == 0; });
}

FULMEN_INLINE at::Tensor Padding::pad(const at::Tensor& x, PadMode mode, double value,
                                      const char* who) const {
  if (empty()) return x;
  constexpr std::string_view names[] = {"constant", "reflect", "replicate", "circular"};
  std::vector<std::int64_t> amounts;  // the last axis first
  for (std::size_t axis = before.size(); axis-- > 0;) {
    const std::int64_t size = x.size(static_cast<std::int64_t>(axis) + 2),
                       most = std::max(before[axis], after[axis]);
    const std::int64_t limit = mode == PadMode::reflect ? size - 1 : size;
    if ((mode == PadMode::reflect || mode == PadMode::circular) && most > limit) {
      fail<std::invalid_argument>(
          "{}: axis {} of size {} must be padded by {}, {} padding can do at most {}; expected "
          "PadMode::constant or PadMode::replicate",
          who, axis, size, most, names[static_cast<std::size_t>(mode)], limit);
    }
    amounts.push_back(before[axis]);
    amounts.push_back(after[axis]);
  }
  return at::pad(x, amounts, names[static_cast<std::size_t>(mode)],
                 mode == PadMode::constant ? std::optional<double>(value) : std::nullopt);
}

FULMEN_INLINE at::ScalarType summed_as(const at::Tensor& prediction, const char* who) {
  const at::ScalarType type = prediction.scalar_type();
  if (!at::isFloatingType(type) && !at::isComplexType(type)) {
    fail("{}: predictions are of type {}, expected floating-point ones: averages of others mean nothing", who,
         c10::toString(type));
  }
  return type == at::kHalf || type == at::kBFloat16 ? at::kFloat : type;
}

}  // namespace detail
#endif

}  // namespace fulmen

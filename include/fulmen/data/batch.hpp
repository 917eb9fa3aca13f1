// What a batch may be, and what the loop does with one: its members, its size, its way to a device.
#pragma once

#include <ATen/core/Tensor.h>

#include <boost/hana/accessors.hpp>
#include <boost/hana/adapt_struct.hpp>
#include <boost/hana/concept/struct.hpp>
#include <boost/hana/first.hpp>
#include <boost/hana/second.hpp>
#include <boost/hana/unpack.hpp>

#include <array>
#include <concepts>
#include <cstdint>
#include <map>
#include <optional>
#include <tuple>
#include <type_traits>
#include <unordered_map>
#include <utility>
#include <vector>

namespace torch::data {
template <class Data, class Target>
struct Example;
}

namespace fulmen {

namespace detail {

template <class T>
concept TensorLike = std::derived_from<std::remove_cvref_t<T>, at::Tensor>;

template <class T>
inline constexpr bool is_std_tuple_like = false;
template <class... T>
inline constexpr bool is_std_tuple_like<std::tuple<T...>> = true;
template <class A, class B>
inline constexpr bool is_std_tuple_like<std::pair<A, B>> = true;
template <class T, std::size_t N>
inline constexpr bool is_std_tuple_like<std::array<T, N>> = true;

template <class T>
inline constexpr bool is_example = false;
template <class D, class T>
inline constexpr bool is_example<torch::data::Example<D, T>> = true;

template <class T>
concept TupleLike = is_std_tuple_like<std::remove_cvref_t<T>>;
template <class T>
concept ExampleLike = is_example<std::remove_cvref_t<T>>;
template <class T>
concept Adapted = boost::hana::Struct<std::remove_cvref_t<T>>::value;

template <class T>
inline constexpr bool is_sequence_of = false;
template <class T, class A>
inline constexpr bool is_sequence_of<std::vector<T, A>> = true;
template <class T>
inline constexpr bool is_map_of = false;
template <class K, class T, class... More>
inline constexpr bool is_map_of<std::map<K, T, More...>> = true;
template <class K, class T, class... More>
inline constexpr bool is_map_of<std::unordered_map<K, T, More...>> = true;
template <class T>
inline constexpr bool is_optional_batch = false;
template <class T>
inline constexpr bool is_optional_batch<std::optional<T>> = true;

template <class T>
concept SequenceLike = is_sequence_of<std::remove_cvref_t<T>>;
template <class T>
concept MapLike = is_map_of<std::remove_cvref_t<T>>;
template <class T>
concept OptionalLike = is_optional_batch<std::remove_cvref_t<T>>;

}  // namespace detail

/// The members of a batch as a tuple of references. A tensor is its only member; a pair, tuple, array, Example or
/// Hana-adapted struct has its fields. Anything else is one member as a whole.
template <class Batch>
constexpr auto members(Batch& batch) {
  if constexpr (detail::TupleLike<Batch>) {
    return std::apply([](auto&... m) { return std::tie(m...); }, batch);
  } else if constexpr (detail::ExampleLike<Batch>) {
    if constexpr (requires { batch.target; }) {
      return std::tie(batch.data, batch.target);
    } else {
      return std::tie(batch.data);
    }
  } else if constexpr (detail::Adapted<Batch>) {
    return boost::hana::unpack(boost::hana::accessors<std::remove_cv_t<Batch>>(), [&](auto... field) {
      return std::forward_as_tuple(boost::hana::second(field)(batch)...);
    });
  } else {
    return std::tie(batch);
  }
}

/// Calls `f` with every tensor in a batch, nested to any depth.
template <class Batch, class F>
constexpr void for_each_tensor(Batch& batch, F&& f) {
  if constexpr (detail::TensorLike<Batch>) {
    f(batch);
  } else if constexpr (detail::TupleLike<Batch> || detail::ExampleLike<Batch> || detail::Adapted<Batch>) {
    std::apply([&](auto&... m) { (for_each_tensor(m, f), ...); }, members(batch));
  } else if constexpr (detail::SequenceLike<Batch>) {
    for (auto& item : batch) for_each_tensor(item, f);
  } else if constexpr (detail::MapLike<Batch>) {
    for (auto& [key, item] : batch) for_each_tensor(item, f);
  } else if constexpr (detail::OptionalLike<Batch>) {
    if (batch) for_each_tensor(*batch, f);
  }
}

/// How many samples a batch holds: the first dimension of its first tensor that has one; 1 if there is none.
template <class Batch>
[[gnu::always_inline]] inline std::int64_t batch_size(const Batch& batch) {
  std::int64_t size = -1;
  for_each_tensor(batch, [&](const at::Tensor& t) {
    if (size < 0 && t.defined() && t.dim() > 0) size = t.size(0);
  });
  return size < 0 ? 1 : size;
}

/// Whether some tensor of the batch lies elsewhere than on `device`.
template <class Batch>
bool elsewhere(const Batch& batch, at::Device device) {
  bool found = false;
  for_each_tensor(batch, [&](const at::Tensor& t) { found = found || (t.defined() && t.device() != device); });
  return found;
}

/// Moves every tensor of the batch to the device, in place in the batch (the tensors themselves are not changed).
template <class Batch>
void move_to(Batch& batch, at::Device device) {
  for_each_tensor(batch, [&](at::Tensor& t) {
    if (!t.defined() || (device.is_cpu() && t.is_cpu())) [[likely]] return;
    if (t.device() != device) t = t.to(device, /*non_blocking=*/true);
  });
}

}  // namespace fulmen

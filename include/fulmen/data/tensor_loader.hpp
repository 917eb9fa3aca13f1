// The loader for data that fits in memory: shuffles indices and gathers whole batches, no work per sample.
#pragma once

#include <fulmen/compiled.hpp>

#include <ATen/core/Tensor.h>

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>
#include <iterator>
#include <span>
#include <tuple>
#include <utility>

#if FULMEN_BODIES
#include <fulmen/error.hpp>
#include <fulmen/optim/simd.hpp>

#include <ATen/CPUGeneratorImpl.h>
#include <ATen/EmptyTensor.h>
#include <ATen/Parallel.h>
#include <ATen/ops/index_select.h>
#include <ATen/ops/randint.h>
#include <ATen/ops/randperm.h>

#include <cstring>
#include <limits>
#include <sstream>
#include <stdexcept>
#endif

namespace fulmen {

struct LoaderOptions {
  std::int64_t batch_size = 1;
  bool shuffle = false;    ///< a new order each epoch, drawn from LibTorch's default generator (see seed_everything)
  bool drop_last = false;  ///< leave out a last batch that is smaller than the others
};

namespace detail {

/// What TensorLoader's constructor throws.
void check_samples(std::span<const at::Tensor> tensors, std::int64_t batch_size);

/// An order of the samples, drawn from LibTorch's default generator.
at::Tensor draw_order(std::int64_t samples, at::Device device);

/// The samples of a tensor at `count` places of an order, from `first` on, as a new tensor.
at::Tensor gather_samples(const at::Tensor& t, const at::Tensor& order, std::int64_t first,
                          std::int64_t count);

}  // namespace detail

/// Tensors that share their first dimension, in batches: `TensorLoader train{{images, labels}, {.batch_size = 64}}`.
///
/// A batch is a std::tuple of as many tensors (one tensor alone is the batch itself). Shuffled batches are
/// gathered, by copying rows where samples are plain memory of the CPU, by one index_select a tensor
/// elsewhere; batches in order are views of the data and copy nothing: do not write to them.
template <std::size_t N>
class TensorLoader {
 public:
  /// @throws std::invalid_argument if a tensor is undefined or has no dimensions, if first dimensions differ,
  /// or if batch_size is below 1.
  TensorLoader(const at::Tensor (&tensors)[N], LoaderOptions options = {}) : options_(options) {
    std::copy(std::begin(tensors), std::end(tensors), tensors_.begin());
    detail::check_samples(tensors_, options_.batch_size);
  }

  auto batch(std::int64_t i) const {
    const std::int64_t first = i * options_.batch_size;
    const std::int64_t count = std::min(options_.batch_size, samples() - first);
    if (!order_.defined()) return gather([&](const at::Tensor& t) { return t.narrow(0, first, count); });
    return gather([&](const at::Tensor& t) { return detail::gather_samples(t, order_, first, count); });
  }

  class Iterator {
   public:
    using iterator_category = std::input_iterator_tag;
    using value_type = decltype(std::declval<const TensorLoader&>().batch(0));
    using difference_type = std::ptrdiff_t;
    using pointer = void;
    using reference = value_type;

    Iterator() = default;
    Iterator(const TensorLoader* loader, std::int64_t i) : loader_(loader), i_(i) {}
    value_type operator*() const { return loader_->batch(i_); }
    Iterator& operator++() {
      ++i_;
      return *this;
    }
    void operator++(int) { ++i_; }
    bool operator==(const Iterator& other) const { return i_ == other.i_; }

   private:
    const TensorLoader* loader_ = nullptr;
    std::int64_t i_ = 0;
  };

  /// Begins an epoch: draws its order if the loader shuffles. So only one walk at a time.
  Iterator begin() {
    order_ = options_.shuffle ? detail::draw_order(samples(), tensors_[0].device()) : at::Tensor();
    return {this, 0};
  }
  Iterator end() const { return {this, size()}; }

  /// Batches in an epoch.
  std::int64_t size() const {
    return options_.drop_last ? samples() / options_.batch_size
                              : (samples() + options_.batch_size - 1) / options_.batch_size;
  }
  std::int64_t samples() const { return tensors_[0].size(0); }

  bool shuffles() const { return options_.shuffle; }
  /// From the next epoch on.
  void shuffle(bool on) { options_.shuffle = on; }

 private:
  template <class F>
  auto gather(F&& f) const {
    if constexpr (N == 1) {
      return f(tensors_[0]);
    } else {
      return std::apply([&](const auto&... t) { return std::tuple{f(t)...}; }, tensors_);
    }
  }

  std::array<at::Tensor, N> tensors_;
  LoaderOptions options_;
  at::Tensor order_;
};

template <std::size_t N>
TensorLoader(const at::Tensor (&)[N], LoaderOptions) -> TensorLoader<N>;
template <std::size_t N>
TensorLoader(const at::Tensor (&)[N]) -> TensorLoader<N>;

#if FULMEN_BODIES
namespace detail {

/// Whether the tensor's samples are blocks of plain memory, one after another.
inline bool has_plain_rows(const at::Tensor& t) {
  return t.is_cpu() && t.layout() == at::kStrided && !t.is_quantized() && !t.is_conj() && !t.is_neg() &&
         !t.requires_grad() && t.is_contiguous();
}

/// Copies `count` rows of Row's size.
template <class Row>
void copy_rows(const char* from, const std::int64_t* index, std::int64_t count, char* to) {
  constexpr auto size = static_cast<std::int64_t>(sizeof(Row));
  for (std::int64_t i = 0; i < count; ++i) std::memcpy(to + i * size, from + index[i] * size, sizeof(Row));
}

/// Copies `count` rows of `bytes` bytes each, those that `index` names.
inline void copy_rows(const char* from, std::int64_t bytes, const std::int64_t* index, std::int64_t count,
                      char* to) {
  switch (bytes) {
    case 1:
      return copy_rows<std::uint8_t>(from, index, count, to);
    case 4:
      return copy_rows<std::uint32_t>(from, index, count, to);
    case 8:
      return copy_rows<std::uint64_t>(from, index, count, to);
    default:
      break;
  }
  // The processor sees by itself that a row is read to its end, not where the next begins.
  constexpr std::int64_t line = 64, ahead = 8 * line;
  for (std::int64_t i = 0; i < count; ++i) {
    if (i + 1 < count) {
      const char* const next = from + index[i + 1] * bytes;
      for (std::int64_t at = 0; at < std::min(bytes, ahead); at += line) __builtin_prefetch(next + at);
    }
    std::memcpy(to + i * bytes, from + index[i] * bytes, static_cast<std::size_t>(bytes));
  }
}

/// The rows of a tensor with plain rows that `index` names, as a new tensor: at::index_select(t, 0, ...) in
/// less time.
inline at::Tensor take_rows(const at::Tensor& t, const std::int64_t* index, std::int64_t count) {
  c10::SmallVector<std::int64_t, 5> sizes(t.sizes().begin(), t.sizes().end());
  sizes[0] = count;
  at::Tensor out = at::detail::empty_cpu(sizes, t.scalar_type());
  const auto bytes =
      static_cast<std::int64_t>(t.itemsize()) * (out.numel() / std::max<std::int64_t>(count, 1));
  if (out.numel() == 0) return out;
  const char* const from = static_cast<const char*>(t.const_data_ptr());
  char* const to = static_cast<char*>(out.mutable_data_ptr());
  // From about where index_select shares its work.
  if (constexpr std::int64_t enough = 128 * 1024;
      count * bytes >= enough && count > 1 && at::get_num_threads() > 1) {
    simd::parallel_for(count, [&](std::int64_t begin, std::int64_t end) {
      copy_rows(from, bytes, index + begin, end - begin, to + begin * bytes);
    });
  } else {
    copy_rows(from, bytes, index, count, to);
  }
  return out;
}

FULMEN_INLINE at::Tensor gather_samples(const at::Tensor& t, const at::Tensor& order, std::int64_t first,
                                        std::int64_t count) {
  if (order.is_cpu() && has_plain_rows(t)) [[likely]] {
    return take_rows(t, order.const_data_ptr<std::int64_t>() + first, count);
  }
  return at::index_select(t, 0, order.narrow(0, first, count));
}

FULMEN_INLINE at::Tensor draw_order(std::int64_t samples, at::Device device) {
  // A generator of the epoch's own, seeded from the default one: the order then does not depend on how
  // many random numbers the model draws in between. Python's RandomSampler does the same.
  const auto seed = at::randint(std::numeric_limits<std::int64_t>::max(), {}, at::kLong).item<std::int64_t>();
  at::Tensor order =
      at::randperm(samples, at::make_generator<at::CPUGeneratorImpl>(static_cast<std::uint64_t>(seed)),
                   at::TensorOptions(at::kLong));
  return device.is_cpu() ? order : order.to(device);
}

FULMEN_INLINE void check_samples(std::span<const at::Tensor> tensors, std::int64_t batch_size) {
  for (std::size_t i = 0; i < tensors.size(); ++i) {
    if (!tensors[i].defined() || tensors[i].dim() == 0) {
      fail<std::invalid_argument>(
          "TensorLoader: tensor {} is {}, expected one with samples along its first dimension", i,
          tensors[i].defined() ? "a single number" : "undefined");
    }
    if (tensors[i].size(0) != tensors[0].size(0)) {
      std::ostringstream shape;
      shape << tensors[i].sizes();
      fail<std::invalid_argument>(
          "TensorLoader: tensor {} has shape {}, expected {} samples as tensor 0 has", i, shape.str(),
          tensors[0].size(0));
    }
  }
  if (batch_size < 1) {
    fail<std::invalid_argument>("TensorLoader: batch_size is {}, expected at least 1", batch_size);
  }
}

}  // namespace detail
#endif

}  // namespace fulmen

// The loader for data that fits in memory: shuffles indices and gathers whole batches, no work per sample.
#pragma once

#include <fulmen/error.hpp>

#include <ATen/CPUGeneratorImpl.h>
#include <ATen/core/Tensor.h>
#include <ATen/ops/index_select.h>
#include <ATen/ops/randint.h>
#include <ATen/ops/randperm.h>

#include <array>
#include <cstdint>
#include <iterator>
#include <sstream>
#include <tuple>
#include <utility>

namespace fulmen {

struct LoaderOptions {
  std::int64_t batch_size = 1;
  bool shuffle = false;    ///< a new order each epoch, drawn from LibTorch's default generator (see seed_everything)
  bool drop_last = false;  ///< leave out a last batch that is smaller than the others
};

/// Tensors that share their first dimension, in batches: `TensorLoader train{{images, labels}, {.batch_size = 64}}`.
///
/// A batch is a std::tuple of as many tensors (one tensor alone is the batch itself). Shuffled batches are gathered by
/// one index_select a tensor; batches in order are views of the data and copy nothing: do not write to them.
template <std::size_t N>
class TensorLoader {
 public:
  /// @throws std::invalid_argument if a tensor is undefined or has no dimensions, if first dimensions differ, or if
  /// batch_size is below 1.
  TensorLoader(const at::Tensor (&tensors)[N], LoaderOptions options = {}) : options_(options) {
    std::copy(std::begin(tensors), std::end(tensors), tensors_.begin());
    for (std::size_t i = 0; i < N; ++i) {
      if (!tensors_[i].defined() || tensors_[i].dim() == 0) {
        fail<std::invalid_argument>("TensorLoader: tensor {} is {}, expected one with samples along its first dimension",
                                    i, tensors_[i].defined() ? "a single number" : "undefined");
      }
      if (tensors_[i].size(0) != tensors_[0].size(0)) {
        std::ostringstream shape;
        shape << tensors_[i].sizes();
        fail<std::invalid_argument>("TensorLoader: tensor {} has shape {}, expected {} samples as tensor 0 has", i,
                                    shape.str(), tensors_[0].size(0));
      }
    }
    if (options_.batch_size < 1) {
      fail<std::invalid_argument>("TensorLoader: batch_size is {}, expected at least 1", options_.batch_size);
    }
  }

  auto batch(std::int64_t i) const {
    const std::int64_t first = i * options_.batch_size;
    const std::int64_t count = std::min(options_.batch_size, samples() - first);
    if (!order_.defined()) return gather([&](const at::Tensor& t) { return t.narrow(0, first, count); });
    const at::Tensor index = order_.narrow(0, first, count);
    return gather([&](const at::Tensor& t) { return at::index_select(t, 0, index); });
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
    if (options_.shuffle) {
      // A generator of the epoch's own, seeded from the default one: the order then does not depend on how many random
      // numbers the model draws in between. Python's RandomSampler does the same.
      const auto seed = at::randint(std::numeric_limits<std::int64_t>::max(), {}, at::kLong).template item<std::int64_t>();
      order_ = at::randperm(samples(), at::make_generator<at::CPUGeneratorImpl>(static_cast<std::uint64_t>(seed)),
                            at::TensorOptions(at::kLong));
      if (!tensors_[0].is_cpu()) order_ = order_.to(tensors_[0].device());
    } else {
      order_ = at::Tensor();
    }
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

}  // namespace fulmen

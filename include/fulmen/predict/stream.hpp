// Predictors of streams, and between single items and batches.
#pragma once

#include <fulmen/compiled.hpp>
#include <fulmen/data/batch.hpp>
#include <fulmen/error.hpp>
#include <fulmen/predict/predictor.hpp>
#include <fulmen/predict/spatial.hpp>

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <iterator>
#include <optional>
#include <type_traits>
#include <utility>
#include <vector>

#if FULMEN_BODIES
#include <ATen/ops/stack.h>
#endif

namespace fulmen {

/// A stream of inputs in, the stream of predictions out, one at a time: `for (auto&& y : run(Infinite{}, stream,
/// infer))`. The stream need not end. `Infinite{} | p` runs p on each item.
///
/// Source: thunder.predict.InfinitePredictor.
struct Infinite {
  template <class Stream>
    requires detail::Walkable<std::remove_reference_t<Stream>>
  constexpr Stream&& forward(Stream&& stream) const { return std::forward<Stream>(stream); }
  template <class Predictions>
  constexpr std::remove_cvref_t<Predictions> backward(Predictions&& predictions) const {
    return std::forward<Predictions>(predictions);
  }
};

/// Inputs without a batch dimension (C×H×W): gives infer a batch of one, and takes the dimension off the prediction.
///
/// All tensors of the inputs get the dimension, all tensors of the prediction lose it.
/// @throws std::runtime_error if a prediction's first dimension is not 1
struct Unbatched {
  template <class Inputs, class Infer>
    requires std::invocable<Infer, detail::Owned<Inputs>>
  auto operator()(const Inputs& inputs, Infer&& infer) const {
    detail::Owned<Inputs> batch(inputs);
    for_each_tensor(batch, [](at::Tensor& t) { t = t.unsqueeze(0); });
    auto prediction = infer(std::move(batch));
    for_each_tensor(prediction, [](at::Tensor& t) { t = detail::item_of(t, 0, 1, "Unbatched"); });
    return prediction;
  }
};

namespace detail {

/// @throws std::runtime_error if they differ in shape
at::Tensor stacked(const std::vector<at::Tensor>& tensors);

/// Takes up to `size` items from a stream and stacks them.
template <class Stream>
class Stacking {
  using Position = decltype(std::begin(std::declval<std::remove_reference_t<Stream>&>()));
  using Item = Owned<decltype(*std::declval<Position&>())>;

 public:
  Stacking(Stream&& stream, std::int64_t size) : stream_(std::forward<Stream>(stream)), size_(size) {}

  std::optional<Item> operator()() {
    std::vector<Item> items;
    // The stream moves on when the next item is needed, not before: it may have to wait for it.
    while (static_cast<std::int64_t>(items.size()) < size_ && advance()) items.emplace_back(**position_);
    if (items.empty()) return std::nullopt;
    std::vector<std::vector<at::Tensor>> lists;
    for (Item& item : items) {
      std::size_t i = 0;
      for_each_tensor(item, [&](const at::Tensor& t) {
        if (&item == &items.front()) lists.emplace_back();
        if (i < lists.size()) lists[i].push_back(t);
        ++i;
      });
      if (i != lists.size()) {
        fail("Batched: an item holds {} tensors, expected {} as in the first of its batch", i, lists.size());
      }
    }
    std::size_t i = 0;
    for_each_tensor(items.front(), [&](at::Tensor& t) { t = stacked(lists[i++]); });
    return std::move(items.front());
  }

 private:
  bool advance() {
    if (ended_) return false;
    if (!position_)
      position_.emplace(std::begin(stream_));
    else
      ++*position_;
    ended_ = !(*position_ != std::end(stream_));
    return !ended_;
  }

  Stream stream_;
  std::int64_t size_;
  std::optional<Position> position_;  // made when this has come to its place: it may point into stream_
  bool ended_ = false;
};

/// The items of a stream of batches.
template <class Batches>
class Unstacking {
  using Position = decltype(std::begin(std::declval<std::remove_reference_t<Batches>&>()));
  using Batch = std::remove_cvref_t<decltype(*std::declval<Position&>())>;

 public:
  explicit Unstacking(Batches&& batches) : batches_(std::forward<Batches>(batches)) {}

  std::optional<Batch> operator()() {
    while (next_ == size_) {
      batch_.reset();
      if (!position_)
        position_.emplace(std::begin(batches_));
      else
        ++*position_;
      if (!(*position_ != std::end(batches_))) return std::nullopt;
      batch_.emplace(**position_);
      next_ = 0, size_ = batch_size(*batch_);
    }
    Batch item = *batch_;
    for_each_tensor(item, [&](at::Tensor& t) { t = item_of(t, next_, size_, "Batched"); });
    ++next_;
    return item;
  }

 private:
  Batches batches_;
  std::optional<Position> position_;
  std::optional<Batch> batch_;
  std::int64_t next_ = 0, size_ = 0;
};

}  // namespace detail

/// Gathers a stream of single items into batches, and gives back a stream of single predictions: lazily, so that no
/// more than one batch is there at a time. The last batch may be smaller.
///
/// Items have no batch dimension: they are stacked along a new one.
/// @throws std::invalid_argument if batch_size is below 1; std::runtime_error if the items of a batch differ in shape
struct Batched {
  std::int64_t batch_size = 1;

  template <class Stream>
    requires detail::Walkable<std::remove_reference_t<Stream>>
  auto forward(Stream&& stream) const {
    if (batch_size < 1)
      fail<std::invalid_argument>("Batched: batch_size is {}, expected at least 1", batch_size);
    return detail::Pulled(detail::Stacking<Stream>(std::forward<Stream>(stream), batch_size));
  }
  template <class Predictions>
  auto backward(Predictions&& predictions) const {
    return detail::Pulled(detail::Unstacking<Predictions>(std::forward<Predictions>(predictions)));
  }
};

#if FULMEN_BODIES
FULMEN_INLINE at::Tensor detail::stacked(const std::vector<at::Tensor>& tensors) {
  for (const at::Tensor& t : tensors) {
    if (t.sizes() != tensors.front().sizes()) {
      fail("Batched: an item has shape {}, expected {} as the first of its batch", shape_text(t.sizes()),
           shape_text(tensors.front().sizes()));
    }
  }
  return at::stack(tensors);
}
#endif

}  // namespace fulmen

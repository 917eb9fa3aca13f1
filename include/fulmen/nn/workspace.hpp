// Tensors kept from step to step, in memory that is shared by those that are not needed at the same time.
#pragma once

#include <fulmen/compiled.hpp>
#include <fulmen/error.hpp>

#include <ATen/core/Tensor.h>

#include <cstddef>
#include <cstdint>
#include <memory>
#include <utility>
#include <vector>

#if FULMEN_BODIES
#include <ATen/ops/empty.h>
#include <ATen/ops/from_blob.h>

#include <algorithm>
#include <limits>
#include <stdexcept>
#endif

namespace fulmen::nn {

/// A tensor that a layer keeps for its next call: an output, a gradient, a mask. A Workspace fills it.
class Buffer {
 public:
  Buffer() = default;
  Buffer(const Buffer&) = delete;
  Buffer& operator=(const Buffer&) = delete;

  const at::Tensor& operator*() const { return tensor_; }
  const at::Tensor* operator->() const { return &tensor_; }
  bool defined() const { return tensor_.defined(); }

 private:
  friend class Workspace;
  at::Tensor tensor_, spare_{};
  bool planned_ = false;  // its memory has its place in the workspace, so it stays
  bool apart_ = false;    // somebody else may hold it after the step
  bool view_ = false;     // of another buffer
};

namespace detail {
struct MemoryPlan;
}

/// The memory of a step's activations and gradients.
///
/// In the first step with given shapes, the plan is made: every tensor is allocated when it is taken and
/// freed when its last holder lets go of it, and these times are noted. At the end of that step each tensor
/// gets its place in one block, in which those that are never needed together lie on top of each other. In
/// the steps that follow, take() only looks whether the shape is the planned one, and release() does nothing.
///
/// The block is there all the time, tensors that ATen allocates (hold) come and go. So that both together
/// need no more memory than the first step did, the largest tensors are left out of the block where that is
/// needed, and are allocated in each step.
///
/// A tensor that does not have the planned shape after all gets memory of its own, for that step.
class Workspace {
 public:
  Workspace();
  ~Workspace();
  Workspace(const Workspace&) = delete;
  Workspace& operator=(const Workspace&) = delete;

  /// Begins a step. @param same whether all is as in the step for which the plan was made: the shapes of what
  /// comes in, which parameters are trained, which modules are in training mode
  void begin(bool same);
  /// Ends it, after its backward pass. A step that is not ended (an exception) makes the next one plan anew.
  void end();

  /// A contiguous tensor of this shape, of the type and device of another one or of these options. What it
  /// holds is undefined.
  at::Tensor& take(Buffer& buffer, at::IntArrayRef sizes, const at::Tensor& like) {
    at::Tensor& t = buffer.tensor_;
    if (buffer.planned_ && !buffer.view_ && !planning_ && t.sizes().equals(sizes) &&
        t.dtype() == like.dtype()) [[likely]]
      return t;
    return allocate(buffer, sizes, like.options());
  }
  at::Tensor& take(Buffer& buffer, at::IntArrayRef sizes, const at::TensorOptions& options) {
    at::Tensor& t = buffer.tensor_;
    if (buffer.planned_ && !buffer.view_ && !planning_ && t.sizes().equals(sizes) &&
        t.dtype() == options.dtype()) [[likely]]
      return t;
    return allocate(buffer, sizes, options);
  }

  /// A tensor that somebody else has allocated: an ATen function that has no variant with an output. It is
  /// freed at its release.
  at::Tensor& hold(Buffer& buffer, at::Tensor tensor) {
    buffer.tensor_ = planning_ ? noted(std::move(tensor)) : std::move(tensor);
    buffer.planned_ = buffer.view_ = false;
    return buffer.tensor_;
  }
  /// A tensor that is not the step's: what comes in.
  void borrow(Buffer& buffer, const at::Tensor& tensor) {
    buffer.tensor_ = tensor;
    buffer.planned_ = buffer.view_ = false;
  }

  /// A view of another buffer: `make(tensor)`. Made once, where that one stays.
  template <class Make>
  at::Tensor& view(Buffer& buffer, const Buffer& base, Make&& make) {
    if (buffer.planned_ && !planning_ && base.planned_ && buffer.tensor_.is_alias_of(base.tensor_)) [[likely]]
      return buffer.tensor_;
    return note_view(buffer, base, make(base.tensor_));
  }
  /// The same tensor as another buffer's.
  at::Tensor& alias(Buffer& buffer, const Buffer& base) {
    if (!buffer.tensor_.is_same(base.tensor_)) note_view(buffer, base, base.tensor_);
    return buffer.tensor_;
  }

  /// What is in there is not needed any more in this step.
  void release(Buffer& buffer) {
    if (!buffer.planned_ && !buffer.apart_) buffer.tensor_.reset();
  }

  /// Somebody may hold this tensor beyond the step, so its memory must be no other's. To be called in each
  /// step in which that is so.
  void keep_apart(const Buffer& buffer) {
    if (planning_) note_apart(buffer);
  }

  /// Bytes of the block.
  std::int64_t bytes() const { return bytes_; }
  bool planning() const { return planning_; }

 private:
  at::Tensor& allocate(Buffer& buffer, at::IntArrayRef sizes, const at::TensorOptions& options);
  at::Tensor noted(at::Tensor tensor);
  at::Tensor& note_view(Buffer& buffer, const Buffer& base, at::Tensor view);
  void note_apart(const Buffer& buffer);
  void forget();

  bool planning_ = true, ended_ = false;
  std::int64_t bytes_ = 0;
  std::shared_ptr<detail::MemoryPlan>
      plan_;                      // of the step that is planned; tensors that outlive it have a share
  std::vector<Buffer*> touched_;  // all that the plan is about
};

#if FULMEN_BODIES
namespace detail {

/// When each tensor of a step is needed.
struct MemoryPlan {
  static constexpr std::int64_t always = std::numeric_limits<std::int64_t>::max();

  struct Entry {
    Buffer* buffer;  ///< none: somebody else's memory
    const void* data;
    std::int64_t bytes, begin, end = always, offset = 0;
    std::vector<std::int64_t> sizes{};
    at::TensorOptions options{};
    bool apart = false, in_block = false;
  };
  std::vector<Entry> entries;
  std::int64_t now = 0;

  static std::int64_t aligned(std::int64_t bytes) {
    return (std::max<std::int64_t>(1, bytes) + 63) / 64 * 64;
  }

  /// The most bytes that those need at one time that are chosen.
  template <class Chosen>
  std::int64_t peak(Chosen&& chosen) const {
    std::vector<std::int64_t> change(static_cast<std::size_t>(now) + 1);
    std::int64_t constant = 0;
    for (const Entry& entry : entries) {
      if (!chosen(entry)) continue;
      if (entry.apart) {  // from step to step
        constant += entry.bytes;
        continue;
      }
      change[static_cast<std::size_t>(entry.begin)] += entry.bytes;
      if (entry.end != always) change[static_cast<std::size_t>(entry.end)] -= entry.bytes;
    }
    std::int64_t live = 0, most = 0;
    for (const std::int64_t c : change) most = std::max(most, live += c);
    return constant + most;
  }

  /// Gives each entry of the block its offset: the larger ones first, each at the lowest place that is free
  /// all the time it is needed.
  /// @return the bytes of all
  std::int64_t place(const std::vector<Entry*>& by_size, std::size_t first) {
    std::vector<Entry*> placed;  // by offset
    std::int64_t total = 0;
    for (std::size_t i = 0; i < by_size.size(); ++i) {
      Entry* const entry = by_size[i];
      entry->in_block = i >= first;
      if (!entry->in_block) continue;
      std::int64_t at = 0;
      for (const Entry* other : placed) {
        if (other->end <= entry->begin || entry->end <= other->begin) continue;
        if (at + entry->bytes <= other->offset) break;
        at = std::max(at, other->offset + aligned(other->bytes));
      }
      entry->offset = at;
      total = std::max(total, at + entry->bytes);
      placed.insert(std::upper_bound(placed.begin(), placed.end(), entry,
                                     [](const Entry* a, const Entry* b) { return a->offset < b->offset; }),
                    entry);
    }
    return total;
  }

  /// The same, with as few of the largest left out as the step's own peak allows.
  std::int64_t place() {
    std::vector<Entry*> by_size;
    for (Entry& entry : entries) {
      if (entry.buffer != nullptr && !entry.apart) by_size.push_back(&entry);
    }
    std::stable_sort(by_size.begin(), by_size.end(),
                     [](const Entry* a, const Entry* b) { return a->bytes > b->bytes; });
    const std::int64_t allowed = peak([](const Entry&) { return true; });
    const auto fits = [&](std::size_t left_out) {
      const std::int64_t block = place(by_size, left_out);
      return block + peak([](const Entry& entry) { return !entry.in_block; }) <=
             allowed + 64 * static_cast<std::int64_t>(entries.size());
    };
    std::size_t low = 0, high = by_size.size();
    while (low < high) {
      const std::size_t middle = low + (high - low) / 2;
      if (fits(middle))
        high = middle;
      else
        low = middle + 1;
    }
    return place(by_size, high);
  }
};

}  // namespace detail

FULMEN_INLINE Workspace::Workspace() = default;
FULMEN_INLINE Workspace::~Workspace() = default;  // the buffers may be gone already

FULMEN_INLINE void Workspace::forget() {
  for (Buffer* buffer : touched_) {
    buffer->tensor_.reset();
    buffer->spare_.reset();
    buffer->planned_ = buffer->apart_ = buffer->view_ = false;
  }
  touched_.clear();
  plan_.reset();
  bytes_ = 0;
}

FULMEN_INLINE void Workspace::begin(bool same) {
  planning_ = !same || !ended_;
  ended_ = false;
  if (!planning_) return;
  forget();
  plan_ = std::make_shared<detail::MemoryPlan>();
}

FULMEN_INLINE void Workspace::end() {
  ended_ = true;
  if (!planning_) return;
  bytes_ = plan_->place();
  at::Tensor block;
  for (detail::MemoryPlan::Entry& entry : plan_->entries) {
    if (entry.buffer == nullptr) continue;
    Buffer& buffer = *entry.buffer;
    buffer.apart_ = entry.apart;
    buffer.planned_ = entry.in_block;
    buffer.tensor_.reset();
    if (!entry.in_block) continue;
    if (!block.defined()) block = at::empty({bytes_}, entry.options.dtype(at::kByte));
    const auto item = static_cast<std::int64_t>(entry.options.dtype().itemsize());
    at::Tensor tensor = at::empty({0}, entry.options);
    std::vector<std::int64_t> strides(entry.sizes.size(), 1);
    for (std::size_t i = strides.size(); i-- > 1;)
      strides[i - 1] = strides[i] * std::max<std::int64_t>(1, entry.sizes[i]);
    tensor.set_(block.storage(), entry.offset / item, entry.sizes, strides);
    buffer.tensor_ = std::move(tensor);
  }
  // Views are of the memory that is freed now.
  for (Buffer* buffer : touched_) {
    if (!buffer->planned_) buffer->tensor_.reset();
  }
  plan_.reset();
  planning_ = false;
}

FULMEN_INLINE at::Tensor& Workspace::allocate(Buffer& buffer, at::IntArrayRef sizes,
                                              const at::TensorOptions& options) {
  if (!planning_) {
    // Memory of its own: planned so, or of an unforeseen shape.
    const auto free = [&](const at::Tensor& t) {
      return t.defined() && t.use_count() == 1 && t.storage().use_count() == 1 && t.sizes().equals(sizes) &&
             t.dtype() == options.dtype();
    };
    if (buffer.apart_) {
      if (!free(buffer.tensor_)) std::swap(buffer.tensor_, buffer.spare_);
      if (free(buffer.tensor_)) return buffer.tensor_;
    }
    buffer.planned_ = buffer.view_ = false;
    return buffer.tensor_ = at::empty(sizes, options);
  }
  for (const detail::MemoryPlan::Entry& entry : plan_->entries) {
    if (entry.buffer == &buffer)
      fail<std::logic_error>(
          "Workspace: a rule takes one Buffer twice in a step, expected one for each tensor");
  }
  touched_.push_back(&buffer);
  buffer.planned_ = buffer.view_ = false;
  buffer.tensor_.reset();
  buffer.tensor_ = noted(at::empty(sizes, options));
  detail::MemoryPlan::Entry& entry = plan_->entries.back();
  entry.buffer = &buffer;
  entry.sizes = sizes.vec();
  entry.options = options;
  return buffer.tensor_;
}

/// The same memory under a tensor whose end is noted.
FULMEN_INLINE at::Tensor Workspace::noted(at::Tensor tensor) {
  void* const data = tensor.mutable_data_ptr();
  const std::size_t index = plan_->entries.size();
  plan_->entries.push_back({nullptr, data, static_cast<std::int64_t>(tensor.nbytes()), plan_->now++});
  const std::vector<std::int64_t> sizes = tensor.sizes().vec(), strides = tensor.strides().vec();
  const at::TensorOptions options = tensor.options();
  const auto freed = [memory = std::move(tensor), plan = plan_, index](void*) mutable {
    plan->entries[index].end = plan->now++;
    plan->entries[index].data = nullptr;
    memory.reset();
  };
  return at::from_blob(data, sizes, strides, freed, options);
}

FULMEN_INLINE at::Tensor& Workspace::note_view(Buffer& buffer, const Buffer& base, at::Tensor view) {
  if (planning_) touched_.push_back(&buffer);
  buffer.tensor_ = std::move(view);
  buffer.view_ = true;
  buffer.planned_ = !planning_ && base.planned_;
  return buffer.tensor_;
}

FULMEN_INLINE void Workspace::note_apart(const Buffer& buffer) {
  const void* const data = buffer->storage().data();
  for (detail::MemoryPlan::Entry& entry : plan_->entries) {
    if (entry.data == data) entry.apart = true;
  }
}
#endif

}  // namespace fulmen::nn

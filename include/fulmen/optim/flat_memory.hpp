// Memory in which the parameters of an optimizer lie side by side, as do their gradients and state: see
// flat().
#pragma once

#include <fulmen/compiled.hpp>

#include <ATen/core/Tensor.h>
#include <c10/core/Storage.h>

#include <cstddef>
#include <cstdint>
#include <vector>

#if FULMEN_BODIES
#include <ATen/core/grad_mode.h>
#include <ATen/ops/empty.h>

#include <algorithm>
#include <cstring>
#include <memory>
#include <tuple>
#include <utility>
#endif

namespace fulmen::detail {

/// A parameter's gradient, without the look that Tensor::grad() takes at its history.
inline const at::Tensor& grad_of(const at::Tensor& parameter) {
  return parameter.unsafeGetTensorImpl()->grad();
}

/// One piece of memory for parameters of one type and device, and one more for their gradients. It lives as
/// long as a parameter, or another tensor, lies in it: their storage owns it.
class FlatMemory {
 public:
  /// Where a parameter lies: elements of the memory.
  struct Place {
    const c10::TensorImpl* parameter;
    std::int64_t begin, end;
    at::Tensor gradient{};  // its view of the flat gradient, made when it is first needed
  };

  /// Moves parameters (contiguous, of one type and device) into memory of their own, in this order. Each
  /// begins where an allocation of its own might, since kernels may round otherwise at other addresses; what
  /// is in between is 0.
  static c10::Storage move(const std::vector<at::Tensor>& parameters);

  /// The memory that a tensor lies in; null: in no such memory.
  static FlatMemory* of(const at::Tensor& t) {
    const c10::Storage& storage = t.unsafeGetTensorImpl()->unsafe_storage();
    return storage.unsafeGetStorageImpl() == nullptr ? nullptr : of(storage);
  }
  static FlatMemory* of(const c10::Storage& storage) {
    return storage.data_ptr().cast_context<FlatMemory>(&release);
  }

  const std::vector<Place>& places() const { return places_; }
  /// The place of a parameter; null: it lies in no place of its own.
  Place* place_of(const at::Tensor& parameter);

  /// All parameters, and all gradients, as a tensor of one dimension. The latter is allocated when it is
  /// first asked for.
  const at::Tensor& parameters() const { return parameters_; }
  const at::Tensor& gradient();
  /// Uninitialized memory with the same places; what is between them is 0.
  at::Tensor alike();
  /// A part of such memory, in the shape of its parameter.
  static at::Tensor part(const at::Tensor& memory, const Place& place, at::IntArrayRef sizes) {
    return memory.narrow(0, place.begin, place.end - place.begin).view(sizes);
  }

  /// Whether the parameter lies in its place still: it may have been given other memory, on another device
  /// for example.
  bool holds(const at::Tensor& parameter, const Place& place) const {
    return of(parameter) == this && parameter.storage_offset() == place.begin &&
           parameter.numel() == place.end - place.begin && parameter.is_contiguous();
  }
  /// Whether a gradient lies in that place.
  bool holds_gradient(const at::Tensor& grad, const Place& place) const {
    return grad.defined() && gradient_.defined() &&
           grad.unsafeGetTensorImpl()->unsafe_storage().unsafeGetStorageImpl() ==
               gradient_.unsafeGetTensorImpl()->unsafe_storage().unsafeGetStorageImpl() &&
           grad.storage_offset() == gradient_.storage_offset() + place.begin &&
           grad.numel() == place.end - place.begin && grad.is_contiguous();
  }
  bool in_place(const at::Tensor& parameter, std::size_t place) const {
    return holds(parameter, places_[place]) && holds_gradient(grad_of(parameter), places_[place]);
  }
  /// Moves the gradient of such a parameter to its place if it is small and on the CPU. @return whether it is
  /// there
  bool take_in(const at::Tensor& parameter, Place& place);

 private:
  static void release(void* memory);

  std::vector<Place> places_;
  at::Tensor parameters_, gradient_;
  at::TensorOptions options_;
  std::int64_t size_ = 0, made_ = 0;
};

/// Where the gradient of a parameter is to be written, so that it lies beside those of the others; undefined:
/// anywhere. Each call gives a tensor of its own.
at::Tensor gradient_place(const at::Tensor& parameter);

/// Gradients that are there, in lists for foreach kernels: those side by side in flat memory are one tensor.
/// Small ones that autograd has put elsewhere are copied there before: that is cheaper than kernels of their
/// own for each.
class GradientRuns {
 public:
  void add(const at::Tensor& parameter);
  std::vector<at::Tensor> tensors();

 private:
  void close();

  std::vector<at::Tensor> tensors_;
  FlatMemory* memory_ = nullptr;  // of a run that may get longer
  const FlatMemory::Place *first_ = nullptr, *last_ = nullptr;
};

/// Where the parameters of an optimizer lie.
class FlatLayout {
 public:
  /// Moves those that are trained into flat memory, one for each type and device; but not those that share
  /// memory with each other or are not contiguous.
  explicit FlatLayout(const std::vector<at::Tensor>& parameters);

  /// At the begin of an update: looks which parameters and gradients lie in their places, and tells autograd
  /// that these parameters change. @return whether these are the same as the last time
  bool gather(const std::vector<at::Tensor>& parameters);
  /// Whether then all were: each one has a gradient.
  bool all_in_place() const { return in_place_ == parts_.size(); }

  /// Whether a parameter has a place, and whether at the last look both it and its gradient were there.
  bool has_place(std::size_t parameter) const { return parts_[parameter].memory != nowhere; }
  bool in_place(std::size_t parameter) const { return parts_[parameter].in_place; }
  /// Whether a parameter that has a place is of its type, device and size still.
  bool fits(std::size_t parameter, const at::Tensor& now) const {
    const at::Tensor& all = memory(memory_of(parameter)).parameters();
    const FlatMemory::Place& place = place_of(parameter);
    return now.dtype() == all.dtype() && now.device() == all.device() &&
           now.numel() == place.end - place.begin;
  }
  /// Whether two parameters that are in place are neighbours.
  bool adjacent(std::size_t first, std::size_t second) const {
    const Part &a = parts_[first], &b = parts_[second];
    return a.in_place && b.in_place && a.memory == b.memory && a.place + 1 == b.place;
  }

  std::size_t memories() const { return storages_.size(); }
  std::size_t memory_of(std::size_t parameter) const { return parts_[parameter].memory; }
  FlatMemory& memory(std::size_t i) const { return *FlatMemory::of(storages_[i]); }
  const FlatMemory::Place& place_of(std::size_t parameter) const {
    return memory(parts_[parameter].memory).places()[parts_[parameter].place];
  }

 private:
  static constexpr std::size_t nowhere = static_cast<std::size_t>(-1);
  struct Part {
    std::size_t memory = nowhere, place = 0;
    bool in_place = false;
  };
  std::vector<Part> parts_;  // by parameter
  std::size_t in_place_ = 0;
  std::vector<c10::Storage> storages_;
};

#if FULMEN_BODIES
FULMEN_INLINE void FlatMemory::release(void* memory) { delete static_cast<FlatMemory*>(memory); }

FULMEN_INLINE c10::Storage FlatMemory::move(const std::vector<at::Tensor>& parameters) {
  const at::NoGradGuard no_grad;
  auto made = std::make_unique<FlatMemory>();
  made->options_ = parameters[0].options().requires_grad(false);
  const auto item = static_cast<std::int64_t>(parameters[0].element_size());
  const auto aligned = [step = std::max<std::int64_t>(1, 64 / item)](std::int64_t n) {
    return (n + step - 1) / step * step;
  };
  for (const at::Tensor& p : parameters) {
    made->places_.push_back({p.unsafeGetTensorImpl(), made->size_, made->size_ + p.numel()});
    made->size_ = aligned(made->size_ + p.numel());
  }
  made->parameters_ = made->alike();
  FlatMemory& memory = *made;
  c10::Storage storage(c10::Storage::use_byte_size_t(), static_cast<std::size_t>(memory.size_ * item),
                       c10::DataPtr(memory.parameters_.mutable_data_ptr(), made.release(), &release,
                                    memory.parameters_.device()),
                       /*allocator=*/nullptr, /*resizable=*/false);
  const at::Tensor all = at::empty({0}, memory.options_).set_(storage, 0, {memory.size_}, {1});
  for (std::size_t i = 0; i < parameters.size(); ++i) {
    const at::Tensor place = part(all, memory.places_[i], parameters[i].sizes());
    place.copy_(parameters[i]);
    parameters[i].set_data(place);
  }
  return storage;
}

FULMEN_INLINE FlatMemory::Place* FlatMemory::place_of(const at::Tensor& parameter) {
  const auto found = std::lower_bound(places_.begin(), places_.end(), parameter.storage_offset(),
                                      [](const Place& place, std::int64_t at) { return place.begin < at; });
  const bool own = found != places_.end() && found->parameter == parameter.unsafeGetTensorImpl() &&
                   holds(parameter, *found);
  return own ? &*found : nullptr;
}

FULMEN_INLINE at::Tensor FlatMemory::alike() {
  const at::NoGradGuard no_grad;
  // Large allocations begin at the same place of a page. A loop over several would then write and read
  // addresses that many processors take for the same at first, since the lower bits are: it was ten times as
  // slow. So each has another begin.
  constexpr std::int64_t page = 4096, apart = 576;
  const auto item = static_cast<std::int64_t>(options_.dtype().itemsize());
  const at::Tensor wider = at::empty({size_ + page / item}, options_);
  const auto at = static_cast<std::int64_t>(reinterpret_cast<std::uintptr_t>(wider.const_data_ptr()) % page);
  const std::int64_t begin = (made_++ * apart + page - at) % page;
  at::Tensor memory = wider.narrow(0, begin % item == 0 ? begin / item : 0, size_);
  for (std::size_t i = 0; i < places_.size(); ++i) {
    const std::int64_t next = i + 1 < places_.size() ? places_[i + 1].begin : size_;
    if (next > places_[i].end) memory.narrow(0, places_[i].end, next - places_[i].end).zero_();
  }
  return memory;
}

FULMEN_INLINE const at::Tensor& FlatMemory::gradient() {
  if (!gradient_.defined()) gradient_ = alike();
  return gradient_;
}

FULMEN_INLINE bool FlatMemory::take_in(const at::Tensor& parameter, Place& place) {
  constexpr std::size_t most = std::size_t{1} << 16;  // bytes
  const at::Tensor& grad = parameter.grad();
  if (holds_gradient(grad, place)) return true;
  if (!grad.is_cpu() || grad.layout() != at::kStrided || grad.nbytes() > most ||
      grad.scalar_type() != parameter.scalar_type() || !grad.sizes().equals(parameter.sizes()) ||
      !grad.is_contiguous() || grad.is_neg() || grad.is_conj() || grad.requires_grad()) {
    return false;
  }
  const auto item = static_cast<std::size_t>(grad.element_size());
  char* const all = static_cast<char*>(gradient().mutable_data_ptr());
  std::memmove(all + static_cast<std::size_t>(place.begin) * item, grad.const_data_ptr(), grad.nbytes());
  if (!place.gradient.defined()) place.gradient = part(gradient(), place, parameter.sizes());
  parameter.mutable_grad() = place.gradient;
  return true;
}

FULMEN_INLINE at::Tensor gradient_place(const at::Tensor& parameter) {
  FlatMemory* const memory = FlatMemory::of(parameter);
  if (memory == nullptr) return {};
  const FlatMemory::Place* const place = memory->place_of(parameter);
  if (place == nullptr) return {};
  const at::NoGradGuard no_grad;
  return FlatMemory::part(memory->gradient(), *place, parameter.sizes());
}

FULMEN_INLINE void GradientRuns::add(const at::Tensor& parameter) {
  const at::Tensor& grad = parameter.grad();
  if (!grad.defined()) return;
  FlatMemory* const memory = FlatMemory::of(parameter);
  FlatMemory::Place* const place = memory == nullptr ? nullptr : memory->place_of(parameter);
  if (place == nullptr || !memory->take_in(parameter, *place)) {
    tensors_.push_back(grad);
    return;
  }
  if (memory != memory_ || place != last_ + 1) {
    close();
    memory_ = memory, first_ = place;
  }
  last_ = place;
}

FULMEN_INLINE void GradientRuns::close() {
  if (memory_ != nullptr)
    tensors_.push_back(memory_->gradient().narrow(0, first_->begin, last_->end - first_->begin));
  memory_ = nullptr;
}

FULMEN_INLINE std::vector<at::Tensor> GradientRuns::tensors() {
  close();
  return std::move(tensors_);
}

/// Which parameters can lie in flat memory.
inline std::vector<bool> movable(const std::vector<at::Tensor>& parameters) {
  std::vector<bool> out(parameters.size());
  std::vector<std::tuple<const void*, std::int64_t, std::int64_t, std::size_t>>
      ranges;  // storage, begin, end, which
  for (std::size_t i = 0; i < parameters.size(); ++i) {
    const at::Tensor& p = parameters[i];
    if (p.layout() != at::kStrided || !p.has_storage() || p.is_neg() || p.is_conj()) continue;
    out[i] = p.requires_grad() && p.is_contiguous() && p.numel() > 0;
    const auto item = static_cast<std::int64_t>(p.element_size());
    std::int64_t span = p.numel() > 0 ? 1 : 0;
    for (std::int64_t d = 0; span > 0 && d < p.dim(); ++d) span += (p.size(d) - 1) * p.stride(d);
    ranges.emplace_back(p.storage().unsafeGetStorageImpl(), p.storage_offset() * item,
                        (p.storage_offset() + span) * item, i);
  }
  std::sort(ranges.begin(), ranges.end());
  std::size_t widest = 0;  // the one that reaches furthest so far
  for (std::size_t k = 1; k < ranges.size(); ++k) {
    const auto& [storage, begin, end, i] = ranges[k];
    const auto& [other, unused, reach, j] = ranges[widest];
    if (storage == other && begin < reach) out[i] = out[j] = false;
    if (storage != other || end > reach) widest = k;
  }
  return out;
}

FULMEN_INLINE FlatLayout::FlatLayout(const std::vector<at::Tensor>& parameters) : parts_(parameters.size()) {
  const std::vector<bool> moves = movable(parameters);
  for (std::size_t i = 0; i < parameters.size(); ++i) {
    if (!moves[i] || has_place(i)) continue;
    std::vector<at::Tensor> alike;
    for (std::size_t j = i; j < parameters.size(); ++j) {
      const at::Tensor &p = parameters[j], &first = parameters[i];
      if (!moves[j] || p.dtype() != first.dtype() || p.device() != first.device()) continue;
      parts_[j].memory = storages_.size(), parts_[j].place = alike.size();
      alike.push_back(p);
    }
    storages_.push_back(FlatMemory::move(alike));
  }
}

FULMEN_INLINE bool FlatLayout::gather(const std::vector<at::Tensor>& parameters) {
  bool same = true;
  in_place_ = 0;
  std::size_t current = nowhere;
  FlatMemory* memory = nullptr;
  for (std::size_t i = 0; i < parts_.size(); ++i) {
    Part& part = parts_[i];
    if (part.memory == nowhere) continue;
    if (part.memory != current) current = part.memory, memory = &this->memory(current);
    const at::Tensor& p = parameters[i];
    const bool in_place = memory->in_place(p, part.place);
    if (in_place) p.unsafeGetTensorImpl()->bump_version(), ++in_place_;
    if (in_place != part.in_place) part.in_place = in_place, same = false;
  }
  return same;
}
#endif

}  // namespace fulmen::detail

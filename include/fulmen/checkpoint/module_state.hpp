// The state of a torch::nn::Module, in the names and the order of Python's state_dict().
#pragma once

#include <fulmen/checkpoint/state.hpp>
#include <fulmen/compiled.hpp>

#include <ATen/core/Tensor.h>
#include <torch/nn/module.h>

#include <cstddef>
#include <string>
#include <utility>
#include <vector>

#if FULMEN_BODIES
#include <fulmen/checkpoint/storage_range.hpp>
#include <fulmen/shape_text.hpp>

#include <ATen/core/grad_mode.h>
#include <c10/core/ScalarType.h>

#include <algorithm>
#include <stdexcept>
#include <string_view>
#include <unordered_set>
#endif

namespace fulmen {

namespace detail {

// Calls visit(name, tensor) for each parameter and buffer in the order of Python's state_dict(): a module's
// own parameters, its own buffers, then its children, depth first. A module registered twice comes twice, as
// in Python.
template <class Visit>
void for_each_module_tensor(const torch::nn::Module& module, const std::string& prefix, Visit& visit) {
  for (const auto& parameter : module.named_parameters(/*recurse=*/false)) {
    if (parameter.value().defined()) visit(prefix + parameter.key(), parameter.value());
  }
  for (const auto& buffer : module.named_buffers(/*recurse=*/false)) {
    if (buffer.value().defined()) visit(prefix + buffer.key(), buffer.value());
  }
  for (const auto& child : module.named_children()) {
    for_each_module_tensor(*child.value(), prefix + child.key() + ".", visit);
  }
}

}  // namespace detail

/// The parameters and buffers of a module by name, as Python's module.state_dict() has them: what torch.load
/// gives can be loaded into the same architecture in Python with strict=True. The tensors are detached and
/// share the module's memory: write the state or clone it before the next step. (LibTorch's buffers are all
/// persistent; undefined ones are left out.)
State module_state(const torch::nn::Module& module);

/// What has not been loaded.
struct KeyMismatch {
  std::vector<std::string> missing;     ///< in the module, not in the state
  std::vector<std::string> unexpected;  ///< in the state, not in the module
  std::vector<std::string> mismatched;  ///< in both, of other shapes
};

/// Copies a state, of ours or of Python, into a module's parameters and buffers: in place, without a
/// gradient, to their device and dtype. Floating-point types are converted to each other, as are complex
/// ones, and integers to those that hold all their values.
///
/// A name that the state lacks is not missing if its tensor lies within that of another name which is there
/// (tied weights, of which safetensors files hold one).
///
/// @return without `strict`, the missing and unexpected names; with `ignore_mismatched_shapes`, those that
/// have another shape in the state: these keep their values
/// @throws std::runtime_error that lists all missing and unexpected names and all values of another shape or
/// kind; nothing has been changed then. Values of another kind are an error in any case.
KeyMismatch load_module_state(torch::nn::Module& module, const State& state, bool strict = true,
                              bool ignore_mismatched_shapes = false);

namespace detail {

/// What of a state goes where in a module. Made without changing anything, and errors are of
/// load_module_state().
struct StatePlan {
  StatePlan(const torch::nn::Module& module, const State& state, bool strict, bool ignore_mismatched_shapes);

  void copy() const;

  KeyMismatch mismatch;

 private:
  at::Tensor tied_value(const at::Tensor& tensor, std::size_t given) const;

  std::vector<std::pair<at::Tensor, at::Tensor>> copies_;  // into, from
};

}  // namespace detail

#if FULMEN_BODIES
namespace detail {

// Names with what there is to say of each, in two columns.
using NameRows = std::vector<std::pair<std::string, std::string>>;

inline void append_rows(std::string& message, const std::string& title, const NameRows& rows) {
  if (rows.empty()) return;
  constexpr std::size_t kMost = 10, kWidest = 60;
  const std::size_t shown = rows.size() > kMost + 1 ? kMost : rows.size();
  std::size_t width = 0;
  for (std::size_t i = 0; i < shown; ++i) width = std::max(width, std::min(rows[i].first.size(), kWidest));
  message += "\n  " + title + " (" + std::to_string(rows.size()) + "):";
  for (std::size_t i = 0; i < shown; ++i) {
    const auto& [name, text] = rows[i];
    message += "\n    " + name + std::string(width - std::min(name.size(), width), ' ') + "  " + text;
  }
  if (shown < rows.size()) message += "\n    and " + std::to_string(rows.size() - shown) + " more";
}

inline std::string kind_or_shape(const c10::IValue& value) {
  if (!value.isTensor() || !value.toTensor().defined()) return kind_of(value);
  return shape_text(value.toTensor().sizes());
}

inline bool converts(at::ScalarType from, at::ScalarType to) {
  if (from == to || (at::isFloatingType(from) && at::isFloatingType(to)) ||
      (at::isComplexType(from) && at::isComplexType(to))) {
    return true;
  }
  if (!at::isIntegralType(from, /*includeBool=*/false) || !at::isIntegralType(to, /*includeBool=*/false))
    return false;
  const bool from_signed = at::isSignedType(from), to_signed = at::isSignedType(to);
  return from_signed == to_signed ? c10::elementSize(from) <= c10::elementSize(to)
                                  : to_signed && c10::elementSize(from) < c10::elementSize(to);
}

// A checkpoint of another wrapper around the same module has its names behind a prefix, or the other way
// round.
inline std::string prefix_hint(const NameRows& missing, const NameRows& unexpected) {
  const auto behind = [](const NameRows& longer, const NameRows& shorter) -> std::string {
    if (shorter.empty()) return "";
    const std::string& first = shorter.front().first;
    std::unordered_set<std::string_view> names;
    for (const auto& row : longer) names.insert(row.first);
    for (const auto& row : longer) {
      const std::string& name = row.first;
      if (name.size() <= first.size() + 1 || !name.ends_with(first)) continue;
      const std::string prefix = name.substr(0, name.size() - first.size());
      if (prefix.back() != '.') continue;
      if (std::all_of(shorter.begin(), shorter.end(),
                      [&](const auto& r) { return names.contains(prefix + r.first); })) {
        return prefix;
      }
    }
    return "";
  };
  if (const std::string prefix = behind(unexpected, missing); !prefix.empty()) {
    return "\n  the missing names are there behind \"" + prefix + "\": load_weights() with {.prefix = \"" +
           prefix + "\"} takes it off";
  }
  if (const std::string prefix = behind(missing, unexpected); !prefix.empty()) {
    return "\n  the unexpected names are the module's without \"" + prefix +
           "\": load into that submodule, or put it before them by load_weights()'s map";
  }
  return "";
}

FULMEN_INLINE StatePlan::StatePlan(const torch::nn::Module& module, const State& state, bool strict,
                                   bool ignore_mismatched_shapes) {
  NameRows missing, unexpected, unfit;
  std::unordered_set<std::string> known;
  std::vector<std::pair<std::string, at::Tensor>> absent;
  const auto visit = [&](const std::string& name, const at::Tensor& tensor) {
    known.insert(name);
    if (!state.contains(name)) {
      absent.emplace_back(name, tensor);
      return;
    }
    const auto value = state.get<c10::IValue>(name);
    const std::string expected = "expected " + shape_text(tensor.sizes());
    if (!value.isTensor() || !value.toTensor().defined()) {
      unfit.emplace_back(name, "found " + kind_of(value) + ", " + expected);
    } else if (const at::Tensor& from = value.toTensor();
               !converts(from.scalar_type(), tensor.scalar_type())) {
      unfit.emplace_back(name, std::string("found ") + c10::toString(from.scalar_type()) + ", expected " +
                                   c10::toString(tensor.scalar_type()));
    } else if (from.sizes().equals(tensor.sizes())) {
      copies_.emplace_back(tensor, from);
    } else if (ignore_mismatched_shapes) {
      mismatch.mismatched.push_back(name);
    } else {
      unfit.emplace_back(name, "found " + shape_text(from.sizes()) + ", " + expected);
    }
  };
  for_each_module_tensor(module, "", visit);

  const std::size_t given = copies_.size();
  for (auto& [name, tensor] : absent) {
    if (const at::Tensor value = tied_value(tensor, given); value.defined()) {
      copies_.emplace_back(tensor, value);
    } else {
      mismatch.missing.push_back(name);
      missing.emplace_back(name, shape_text(tensor.sizes()));
    }
  }
  std::vector<std::string> names = state.keys();
  auto next = names.begin();
  for (const auto& entry : state.dict()) {
    std::string& name = *next++;
    if (known.contains(name)) continue;
    unexpected.emplace_back(name, kind_or_shape(entry.value()));
    mismatch.unexpected.push_back(std::move(name));
  }

  if (unfit.empty() && (!strict || (missing.empty() && unexpected.empty()))) return;
  std::string message = "cannot load " +
                        (state.owner().empty() ? "the state" : "the state of " + state.owner()) + " into " +
                        module.name() + ":";
  if (strict) {
    append_rows(message, "missing", missing);
    append_rows(message, "unexpected", unexpected);
  }
  append_rows(message, "of another shape or kind", unfit);
  if (strict) message += prefix_hint(missing, unexpected);
  throw std::runtime_error(message);
}

// The value of a tensor that lies within one of the first `given` tensors to be loaded; undefined if it does
// not.
FULMEN_INLINE at::Tensor StatePlan::tied_value(const at::Tensor& tensor, std::size_t given) const {
  const auto has_range = [](const at::Tensor& t) { return t.layout() == c10::kStrided && t.has_storage(); };
  if (!has_range(tensor)) return {};
  const auto range = checkpoint::detail::storage_range(tensor);
  if (range.empty()) return {};
  for (std::size_t i = 0; i < given; ++i) {
    const auto& [whole, value] = copies_[i];
    if (!has_range(whole) || !checkpoint::detail::storage_range(whole).covers(range)) continue;
    if (whole.scalar_type() != tensor.scalar_type()) continue;
    if (whole.sizes().equals(tensor.sizes()) && whole.strides().equals(tensor.strides())) return value;
    if (!whole.is_contiguous()) continue;
    return value.contiguous().as_strided(tensor.sizes(), tensor.strides(),
                                         tensor.storage_offset() - whole.storage_offset());
  }
  return {};
}

FULMEN_INLINE void StatePlan::copy() const {
  const at::NoGradGuard no_grad;
  for (const auto& [into, from] : copies_) into.copy_(from);
}

}  // namespace detail

FULMEN_INLINE State module_state(const torch::nn::Module& module) {
  State state(module.name());
  const auto visit = [&](const std::string& name, const at::Tensor& tensor) {
    state.set(name, tensor.detach());
  };
  detail::for_each_module_tensor(module, "", visit);
  return state;
}

FULMEN_INLINE KeyMismatch load_module_state(torch::nn::Module& module, const State& state, bool strict,
                                            bool ignore_mismatched_shapes) {
  detail::StatePlan plan(module, state, strict, ignore_mismatched_shapes);
  plan.copy();
  return std::move(plan.mismatch);
}
#endif

}  // namespace fulmen

// The state of a torch::nn::Module, in the names and the order of Python's state_dict().
#pragma once

#include <fulmen/checkpoint/state.hpp>
#include <fulmen/compiled.hpp>

#include <torch/nn/module.h>

#include <string>
#include <vector>

#if FULMEN_BODIES
#include <ATen/core/grad_mode.h>

#include <cstddef>
#include <stdexcept>
#include <unordered_set>
#include <utility>
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

std::string shape_text(const at::Tensor& tensor);

}  // namespace detail

/// The parameters and buffers of a module by name, as Python's module.state_dict() has them: what torch.load
/// gives can be loaded into the same architecture in Python with strict=True. The tensors are detached and
/// share the module's memory: write the state or clone it before the next step. (LibTorch's buffers are all
/// persistent; undefined ones are left out.)
State module_state(const torch::nn::Module& module);

/// What load_module_state() has not used, if it is not strict.
struct KeyMismatch {
  std::vector<std::string> missing;     // in the module, not in the state
  std::vector<std::string> unexpected;  // in the state, not in the module
};

/// Copies a state, of ours or of Python, into a module's parameters and buffers: in place, without a
/// gradient, to their device and dtype. Error: std::runtime_error with all missing and unexpected keys, and
/// all values of another shape or kind, in one message; then nothing has been changed. Without `strict`,
/// missing and unexpected keys are no error but given back.
KeyMismatch load_module_state(torch::nn::Module& module, const State& state, bool strict = true);

#if FULMEN_BODIES
namespace detail {

FULMEN_INLINE std::string shape_text(const at::Tensor& tensor) {
  std::string text = "[";
  for (const auto size : tensor.sizes()) text += (text.size() > 1 ? ", " : "") + std::to_string(size);
  return text + "]";
}

inline void append_keys(std::string& message, const char* title, const std::vector<std::string>& keys) {
  if (keys.empty()) return;
  message += std::string("\n  ") + title + ": ";
  for (std::size_t i = 0; i < keys.size(); ++i) message += (i > 0 ? ", " : "") + keys[i];
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

FULMEN_INLINE KeyMismatch load_module_state(torch::nn::Module& module, const State& state, bool strict) {
  KeyMismatch mismatch;
  std::vector<std::string> unfit;
  std::vector<std::pair<at::Tensor, at::Tensor>> copies;
  std::unordered_set<std::string> used;
  const auto visit = [&](const std::string& name, const at::Tensor& tensor) {
    if (!state.contains(name)) {
      mismatch.missing.push_back(name);
      return;
    }
    used.insert(name);
    const auto value = state.get<c10::IValue>(name);
    if (!value.isTensor()) {
      unfit.push_back("'" + name + "' is " + detail::kind_of(value) + " in the state, expected a tensor");
    } else if (!value.toTensor().sizes().equals(tensor.sizes())) {
      unfit.push_back("'" + name + "' is " + detail::shape_text(value.toTensor()) + " in the state and " +
                      detail::shape_text(tensor) + " in the module");
    } else {
      copies.emplace_back(tensor, value.toTensor());
    }
  };
  detail::for_each_module_tensor(module, "", visit);
  for (std::string& key : state.keys()) {
    if (!used.contains(key)) mismatch.unexpected.push_back(std::move(key));
  }

  if (!unfit.empty() || (strict && !(mismatch.missing.empty() && mismatch.unexpected.empty()))) {
    std::string message = "cannot load " +
                          (state.owner().empty() ? "the state" : "the state of " + state.owner()) + " into " +
                          module.name() + ":";
    if (strict) {
      detail::append_keys(message, "missing keys", mismatch.missing);
      detail::append_keys(message, "unexpected keys", mismatch.unexpected);
    }
    detail::append_keys(message, "values that do not fit", unfit);
    throw std::runtime_error(message);
  }

  const at::NoGradGuard no_grad;
  for (auto& [into, from] : copies) into.copy_(from);
  return mismatch;
}
#endif

}  // namespace fulmen

// Weights from a file of whatever writer into a module: load_weights(module, path),
// load_from_checkpoint<Net>(path, arguments...).
#pragma once

#include <fulmen/checkpoint/hyperparameters_state.hpp>
#include <fulmen/checkpoint/module_state.hpp>
#include <fulmen/checkpoint/state.hpp>
#include <fulmen/compiled.hpp>
#include <fulmen/error.hpp>

#include <c10/core/Device.h>
#include <c10/core/ScalarType.h>
#include <torch/nn/module.h>

#include <concepts>
#include <filesystem>
#include <memory>
#include <optional>
#include <string>
#include <type_traits>
#include <typeinfo>
#include <utility>

#if FULMEN_BODIES
#include <fulmen/checkpoint/archive.hpp>
#include <fulmen/checkpoint/safetensors.hpp>
#include <fulmen/checkpoint/zip.hpp>

#include <ATen/core/Tensor.h>
#include <c10/util/Type.h>

#include <stdexcept>
#include <vector>
#endif

namespace fulmen {

struct LoadWeights {
  bool strict = true;                      ///< the file has the module's names, and no others
  bool ignore_mismatched_shapes = false;   ///< leaves parameters alone that have another shape in the file
  std::optional<c10::Device> device{};     ///< where the module is moved first; empty: it stays where it is
  std::optional<c10::ScalarType> dtype{};  ///< what its floating-point parameters and buffers are made first
  std::string prefix{};  ///< names in the file that begin so are taken, without it; the others do not count
  std::string
      key{};  ///< under which of the file's keys the weights are; empty: `state_dict`, or the file itself
};

namespace detail {

/// What a file says about a module.
struct WeightsFile {
  State weights;
  std::optional<State> hyper_parameters;
};

WeightsFile read_weights_file(const std::filesystem::path& path, const std::string& key);

/// The same tensors without the prefix of their names, of those that have it.
State without_prefix(const State& weights, const std::string& prefix);

[[noreturn, gnu::cold]] void fail_same_name(const State& weights, const std::string& from,
                                            const std::string& name);
[[noreturn, gnu::cold]] void fail_no_hyperparameters(const std::filesystem::path& path, const char* module);

/// The same tensors under the names map(name); those for which it gives an empty std::optional are left out.
template <class Map>
State mapped(const State& weights, Map& map) {
  State all(weights.owner());
  for (const std::string& from : weights.keys()) {
    const std::optional<std::string> name = map(from);
    if (!name) continue;
    if (all.contains(*name)) fail_same_name(weights, from, *name);
    all.set(*name, weights.get<c10::IValue>(from));
  }
  return all;
}

KeyMismatch load_weights(torch::nn::Module& module, const State& weights, const LoadWeights& options);

}  // namespace detail

/// The tensors that a file holds for a module, by name, on the CPU: of a checkpoint of fulmen or Lightning
/// its `state_dict`; of a file that torch.save wrote of a state_dict, or of several under keys, what stands
/// under `key`; of a safetensors file all. Which of them it is, is seen in the file, not in its name.
/// @throws std::runtime_error naming the file: see checkpoint::read, checkpoint::read_safetensors; or it
/// holds no weights
State read_weights(const std::filesystem::path& path, const std::string& key = "");

/// Copies the weights in a file (see read_weights()) into a module's parameters and buffers, which keep their
/// device and dtype; see load_module_state() for what is converted.
///
///   load_weights(net, "best.ckpt");
///   load_weights(net, "backbone.safetensors", {.strict = false, .prefix = "encoder."});
///
/// @return what has not been loaded: nothing, if strict
/// @throws std::runtime_error that names the file and lists missing, unexpected and unfit names;
/// std::invalid_argument for a dtype that is not floating-point. Nothing has been changed then. Source:
/// Lightning's load_from_checkpoint, torch's load_state_dict, transformers' ignore_mismatched_sizes
KeyMismatch load_weights(torch::nn::Module& module, const std::filesystem::path& path,
                         const LoadWeights& options = {});

/// The same with other names: map(name in the file, without the prefix) gives the name in the module, or an
/// empty std::optional for what is to be left out.
template <class Map>
requires std::is_invocable_r_v<std::optional<std::string>, Map&, const std::string&> KeyMismatch load_weights(
    torch::nn::Module& module, const std::filesystem::path& path, const LoadWeights& options, Map map) {
  const State weights = detail::without_prefix(read_weights(path, options.key), options.prefix);
  return detail::load_weights(module, detail::mapped(weights, map), options);
}

/// Lightning's load_from_checkpoint: makes a module and loads its weights. It is made of `arguments`; without
/// any, of the hyper-parameters in the file where it has a member `hparams` (of an adapted struct) and a
/// constructor that takes that struct; else of nothing.
///
///   auto net = load_from_checkpoint<Net>("best.ckpt");  // a std::shared_ptr<Net>, as a Trainer takes it
///
/// @throws as load_weights() and hyperparameters_from(); std::runtime_error if there are no hyper-parameters
/// in the file and Net cannot be made of nothing
template <std::derived_from<torch::nn::Module> Net, class... Arguments>
std::shared_ptr<Net> load_from_checkpoint(const std::filesystem::path& path, const LoadWeights& options,
                                          Arguments&&... arguments) {
  const detail::WeightsFile file = detail::read_weights_file(path, options.key);
  std::shared_ptr<Net> net;
  if constexpr (sizeof...(Arguments) > 0) {
    static_assert(
        std::constructible_from<Net, Arguments...>,
        "fulmen: load_from_checkpoint<Net>(path, arguments...): Net has no constructor that takes these");
    if constexpr (std::constructible_from<Net, Arguments...>) {
      net = std::make_shared<Net>(std::forward<Arguments>(arguments)...);
    }
  } else {
    constexpr bool from_nothing = std::default_initializable<Net>;
    constexpr bool from_hparams = [] {
      if constexpr (detail::HasHyperparameters<Net>) {
        return std::constructible_from<Net, std::remove_cvref_t<decltype(std::declval<Net&>().hparams)>>;
      }
      return false;
    }();
    static_assert(from_nothing || from_hparams,
                  "fulmen: load_from_checkpoint<Net>(path): Net can be made of nothing, or has a member "
                  "`hparams` of an "
                  "adapted struct of which it can be made; else its constructor's arguments are to be given");
    if constexpr (from_hparams) {
      using Hparams = std::remove_cvref_t<decltype(std::declval<Net&>().hparams)>;
      if (file.hyper_parameters) {
        net = std::make_shared<Net>(hyperparameters_from<Hparams>(*file.hyper_parameters));
      }
    }
    if constexpr (from_nothing) {
      if (!net) net = std::make_shared<Net>();
    } else if constexpr (from_hparams) {
      if (!net) detail::fail_no_hyperparameters(path, typeid(Net).name());
    }
  }
  // Not made only where one of the assertions has failed.
  if (net) detail::load_weights(*net, detail::without_prefix(file.weights, options.prefix), options);
  return net;
}

template <std::derived_from<torch::nn::Module> Net, class... Arguments>
  requires(!(std::same_as<std::remove_cvref_t<Arguments>, LoadWeights> || ...))
std::shared_ptr<Net> load_from_checkpoint(const std::filesystem::path& path, Arguments&&... arguments) {
  return load_from_checkpoint<Net>(path, LoadWeights{}, std::forward<Arguments>(arguments)...);
}

#if FULMEN_BODIES
namespace detail {

inline bool is_safetensors(const std::filesystem::path& path) {
  try {
    const checkpoint::detail::InputFile file(path);
    return file.size() > 8 && file.read(0, 4) != "PK\x03\x04" && file.read(8, 1) == "{";
  } catch (const std::runtime_error&) {
    return false;  // reading it says what is wrong
  }
}

FULMEN_INLINE WeightsFile read_weights_file(const std::filesystem::path& path, const std::string& key) {
  if (is_safetensors(path)) {
    if (!key.empty())
      fail("cannot load weights from '{}': it is a safetensors file, which has no key '{}'", path.string(),
           key);
    return {checkpoint::read_safetensors(path).tensors.named("'" + path.string() + "'"), std::nullopt};
  }
  const c10::IValue value = checkpoint::read(path);
  if (!value.isGenericDict()) {
    fail("cannot load weights from '{}': it holds {}, expected a dict", path.string(), kind_of(value));
  }
  const State all(value, "'" + path.string() + "'");
  std::optional<State> hyper_parameters;
  if (all.contains("hyper_parameters") && all.get<c10::IValue>("hyper_parameters").isGenericDict()) {
    hyper_parameters = all.get<State>("hyper_parameters");
  }
  if (!key.empty()) return {all.get<State>(key).named(all.owner()), hyper_parameters};
  if (all.contains("state_dict") && all.get<c10::IValue>("state_dict").isGenericDict()) {
    return {all.get<State>("state_dict").named(all.owner()), hyper_parameters};
  }
  std::string dicts;
  for (const auto& entry : all.dict()) {
    if (entry.value().isTensor()) return {all, hyper_parameters};
    if (entry.value().isGenericDict() && entry.key().isString()) {
      dicts += (dicts.empty() ? "'" : ", '") + entry.key().toStringRef() + "'";
    }
  }
  if (all.empty()) return {all, hyper_parameters};  // of a module without parameters
  fail("cannot load weights from '{}': it has no 'state_dict' and no tensors; {}", path.string(),
       dicts.empty() ? std::string("nor dicts that might be one")
                     : "expected one of its dicts as .key: " + dicts);
}

FULMEN_INLINE State without_prefix(const State& weights, const std::string& prefix) {
  if (prefix.empty()) return weights;
  State all(weights.owner());
  for (const std::string& name : weights.keys()) {
    if (name.starts_with(prefix)) all.set(name.substr(prefix.size()), weights.get<c10::IValue>(name));
  }
  if (all.empty()) {
    const std::vector<std::string> names = weights.keys();
    fail("cannot load weights from {}: none of its {} names begins with '{}'{}", weights.owner(),
         names.size(), prefix, names.empty() ? "" : "; the first is '" + names.front() + "'");
  }
  return all;
}

FULMEN_INLINE void fail_same_name(const State& weights, const std::string& from, const std::string& name) {
  fail("cannot load weights from {}: map makes '{}' and another name '{}', expected different ones",
       weights.owner(), from, name);
}

FULMEN_INLINE void fail_no_hyperparameters(const std::filesystem::path& path, const char* module) {
  fail(
      "cannot make the module of '{}': it has no hyper_parameters, expected them, or the arguments of {}'s "
      "constructor",
      path.string(), c10::demangle(module));
}

FULMEN_INLINE KeyMismatch load_weights(torch::nn::Module& module, const State& weights,
                                       const LoadWeights& options) {
  if (options.dtype && !at::isFloatingType(*options.dtype)) {
    fail<std::invalid_argument>("load_weights: dtype is {}, expected a floating-point one",
                                c10::toString(*options.dtype));
  }
  StatePlan plan(module, weights, options.strict, options.ignore_mismatched_shapes);
  if (options.device) module.to(*options.device);
  if (options.dtype) {
    const auto convert = [&](const std::string&, at::Tensor tensor) {
      if (tensor.is_floating_point()) tensor.set_data(tensor.to(*options.dtype));
    };
    for_each_module_tensor(module, "", convert);
  }
  plan.copy();
  return std::move(plan.mismatch);
}

}  // namespace detail

FULMEN_INLINE State read_weights(const std::filesystem::path& path, const std::string& key) {
  return detail::read_weights_file(path, key).weights;
}

FULMEN_INLINE KeyMismatch load_weights(torch::nn::Module& module, const std::filesystem::path& path,
                                       const LoadWeights& options) {
  return detail::load_weights(module, detail::without_prefix(read_weights(path, options.key), options.prefix),
                              options);
}
#endif

}  // namespace fulmen

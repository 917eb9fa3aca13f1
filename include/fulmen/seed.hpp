// One seed for everything random, and the state of what draws from it.
#pragma once

#include <fulmen/compiled.hpp>

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <vector>

#if FULMEN_BODIES
#include <ATen/CPUGeneratorImpl.h>
#include <ATen/Context.h>
#include <ATen/detail/CUDAHooksInterface.h>

#include <mutex>
#endif

namespace fulmen {

/// Seeds LibTorch's generators on all devices. Initial weights, loaders that shuffle and dropout all draw from them: call
/// it before the module is made. The same seed gives the same numbers, bit for bit, on the same machine.
void seed_everything(std::uint64_t seed);

namespace detail {

/// The state of the CPU's default generator.
at::Tensor generator_state();
void set_generator_state(const at::Tensor& state);

/// Those of the GPUs' default generators, in the order of the devices; none without a GPU.
std::vector<at::Tensor> gpu_generator_states();
/// Where there are fewer GPUs than states, the first ones are used.
void set_gpu_generator_states(const std::vector<at::Tensor>& states);

/// Puts the CPU's default generator back as it was.
class IsolatedGenerator {
 public:
  IsolatedGenerator() : state_(generator_state()) {}
  ~IsolatedGenerator() { set_generator_state(state_); }
  IsolatedGenerator(const IsolatedGenerator&) = delete;
  IsolatedGenerator& operator=(const IsolatedGenerator&) = delete;

 private:
  at::Tensor state_;
};

}  // namespace detail

#if FULMEN_BODIES
FULMEN_INLINE void seed_everything(std::uint64_t seed) { at::manual_seed(seed); }

FULMEN_INLINE at::Tensor detail::generator_state() {
  auto generator = at::detail::getDefaultCPUGenerator();
  const std::lock_guard lock(generator.mutex());
  return generator.get_state();
}

FULMEN_INLINE void detail::set_generator_state(const at::Tensor& state) {
  auto generator = at::detail::getDefaultCPUGenerator();
  const std::lock_guard lock(generator.mutex());
  generator.set_state(state);
}

FULMEN_INLINE std::vector<at::Tensor> detail::gpu_generator_states() {
  std::vector<at::Tensor> states;
  if (!at::hasCUDA()) return states;
  for (at::DeviceIndex device = 0; device < at::detail::getCUDAHooks().deviceCount(); ++device) {
    at::Generator generator = at::globalContext().defaultGenerator(at::Device(at::kCUDA, device));
    const std::lock_guard lock(generator.mutex());
    states.push_back(generator.get_state());
  }
  return states;
}

FULMEN_INLINE void detail::set_gpu_generator_states(const std::vector<at::Tensor>& states) {
  if (!at::hasCUDA()) return;
  at::DeviceIndex device = 0;
  for (const at::Tensor& state : states) {
    if (device >= at::detail::getCUDAHooks().deviceCount()) break;
    at::Generator generator = at::globalContext().defaultGenerator(at::Device(at::kCUDA, device++));
    const std::lock_guard lock(generator.mutex());
    generator.set_state(state);
  }
}
#endif

}  // namespace fulmen

// DeviceStatsMonitor: logs how much of processor and memory is used, before and after batches.
#pragma once

#include <fulmen/callbacks/log_due.hpp>
#include <fulmen/compiled.hpp>
#include <fulmen/loop/trainer_context.hpp>

#include <c10/core/Device.h>

#include <cstdint>
#include <optional>
#include <string>
#include <utility>

#if FULMEN_BODIES
#include <fulmen/error.hpp>

#include <ATen/DeviceAccelerator.h>

#include <array>
#include <cstddef>
#include <fstream>
#include <limits>
#include <string_view>
#endif

namespace fulmen {

/// What of the machine is used, in percent, as Linux says it. Source of the names: lightning's
/// CPUAccelerator.
class CpuStats {
 public:
  /// cpu_vm_percent: memory that is not available; cpu_percent: time that processors were busy since the last
  /// call (0 the first time); cpu_swap_percent. @throws std::runtime_error if /proc cannot be read
  Metrics read();

 private:
  double busy_ = 0, total_ = 0;
};

namespace detail {
/// The caching allocator's counters, under the names of torch.cuda.memory_stats.
Metrics device_memory_stats(at::Device device);
}  // namespace detail

/// `DeviceStatsMonitor{}` logs DeviceStatsMonitor.on_train_batch_start/cpu_percent,
/// ....on_train_batch_end/..., and the same for validation and test, at batches at which the loop logs: on
/// the CPU the machine's use (CpuStats), on another device what its allocator counts. Source:
/// lightning.pytorch.callbacks.DeviceStatsMonitor.
struct DeviceStatsMonitor {
  std::optional<bool>
      cpu_stats{};  ///< whether the machine's use is logged; unset: where the module is on the CPU

  void on_train_batch_start(auto& ctx) {
    due_.batch_starts(ctx);
    if (due_.now(ctx)) log(ctx, "on_train_batch_start");
  }
  void on_train_batch_end(auto& ctx) {
    if (due_.now(ctx)) log(ctx, "on_train_batch_end");
  }
  void on_validation_batch_start(auto& ctx) { evaluation(ctx, "on_validation_batch_start"); }
  void on_validation_batch_end(auto& ctx) { evaluation(ctx, "on_validation_batch_end"); }
  void on_test_batch_start(auto& ctx) { evaluation(ctx, "on_test_batch_start"); }
  void on_test_batch_end(auto& ctx) { evaluation(ctx, "on_test_batch_end"); }

  // Public only because aggregates have no private members.
  detail::LogDue due_{};
  CpuStats cpu_{};

 private:
  void evaluation(auto& ctx, const char* hook) {
    if (!ctx.sanity_checking() && (ctx.batch_idx() + 1) % ctx.options().log_every_n_steps == 0)
      log(ctx, hook);
  }
  template <class Ctx>
  void log(Ctx& ctx, const char* hook) {
    static_assert(Ctx::has_loggers,
                  "fulmen: DeviceStatsMonitor needs a logger, and this Trainer's Runtime has none");
    ctx.log_metrics(stats(ctx.device(), hook), due_.step());
  }
  Metrics stats(at::Device device, const char* hook);
};

#if FULMEN_BODIES

FULMEN_INLINE Metrics CpuStats::read() {
  std::ifstream stat("/proc/stat"), meminfo("/proc/meminfo");
  std::string word;
  stat >> word;
  // user, nice, system, idle, iowait, irq, softirq, steal; what follows is contained in the first two.
  std::array<double, 8> times{};
  for (double& time : times) stat >> time;
  if (word != "cpu" || !stat) fail("DeviceStatsMonitor: cannot read the processors' times from /proc/stat");
  double total = 0;
  for (const double time : times) total += time;
  const double busy = total - times[3] - times[4];
  const double percent = total_ > 0 && total > total_ ? 100 * (busy - busy_) / (total - total_) : 0;
  busy_ = busy, total_ = total;

  double memory = 0, available = 0, swap = 0, swap_free = 0;
  for (double value; meminfo >> word >> value;
       meminfo.ignore(std::numeric_limits<std::streamsize>::max(), '\n')) {
    if (word == "MemTotal:") memory = value;
    if (word == "MemAvailable:") available = value;
    if (word == "SwapTotal:") swap = value;
    if (word == "SwapFree:") swap_free = value;
  }
  if (!(memory > 0)) fail("DeviceStatsMonitor: cannot read the memory's size from /proc/meminfo");
  return {{"cpu_vm_percent", 100 * (memory - available) / memory},
          {"cpu_percent", percent},
          {"cpu_swap_percent", swap > 0 ? 100 * (swap - swap_free) / swap : 0}};
}

FULMEN_INLINE Metrics detail::device_memory_stats(at::Device device) {
  const auto stats = at::accelerator::getDeviceStats(device.index());
  Metrics out;
  const auto add = [&](const std::string& name, const c10::CachingAllocator::Stat& stat) {
    out.emplace_back(name + ".current", static_cast<double>(stat.current));
    out.emplace_back(name + ".peak", static_cast<double>(stat.peak));
    out.emplace_back(name + ".allocated", static_cast<double>(stat.allocated));
    out.emplace_back(name + ".freed", static_cast<double>(stat.freed));
  };
  const auto each = [&](const char* name, const c10::CachingAllocator::StatArray& pools) {
    constexpr std::array<const char*, 3> of{".all", ".small_pool", ".large_pool"};
    for (std::size_t i = 0; i < of.size(); ++i) add(std::string(name) + of[i], pools[i]);
  };
  each("allocation", stats.allocation);
  each("segment", stats.segment);
  each("active", stats.active);
  each("inactive_split", stats.inactive_split);
  each("allocated_bytes", stats.allocated_bytes);
  each("reserved_bytes", stats.reserved_bytes);
  each("active_bytes", stats.active_bytes);
  each("inactive_split_bytes", stats.inactive_split_bytes);
  each("requested_bytes", stats.requested_bytes);
  add("oversize_allocations", stats.oversize_allocations);
  add("oversize_segments", stats.oversize_segments);
  out.emplace_back("num_alloc_retries", static_cast<double>(stats.num_alloc_retries));
  out.emplace_back("num_ooms", static_cast<double>(stats.num_ooms));
  out.emplace_back("num_sync_all_streams", static_cast<double>(stats.num_sync_all_streams));
  out.emplace_back("num_device_alloc", static_cast<double>(stats.num_device_alloc));
  out.emplace_back("num_device_free", static_cast<double>(stats.num_device_free));
  out.emplace_back("max_split_size", static_cast<double>(stats.max_split_size));
  return out;
}

FULMEN_INLINE Metrics DeviceStatsMonitor::stats(at::Device device, const char* hook) {
  Metrics out;
  if (!device.is_cpu()) out = detail::device_memory_stats(device);
  if (cpu_stats.value_or(device.is_cpu())) {
    const Metrics cpu = cpu_.read();
    out.insert(out.end(), cpu.begin(), cpu.end());
  }
  for (Metric& metric : out) metric.name = "DeviceStatsMonitor." + std::string(hook) + "/" + metric.name;
  return out;
}

#endif

}  // namespace fulmen

// GradientAccumulationScheduler: how many batches make an optimizer step, by epoch.
#pragma once

#include <fulmen/compiled.hpp>
#include <fulmen/loop/context.hpp>

#include <cstdint>
#include <map>

namespace fulmen {

/// `GradientAccumulationScheduler{{{0, 1}, {4, 8}}}`: from epoch 0 every batch, from epoch 4 every 8 batches. Between the
/// epochs given, and before the first (where the option accumulate_grad_batches holds), nothing changes.
struct GradientAccumulationScheduler {
  std::map<std::int64_t, std::int64_t> scheduling;

  void on_train_epoch_start(Context& ctx) const;
};

#if FULMEN_BODIES

FULMEN_INLINE void GradientAccumulationScheduler::on_train_epoch_start(Context& ctx) const {
  const auto found = scheduling.find(ctx.epoch());
  if (found != scheduling.end()) ctx.set_accumulate_grad_batches(found->second);
}

#endif

}  // namespace fulmen

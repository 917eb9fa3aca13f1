// When callbacks that log by themselves do so: with the batches after which the loop logs.
#pragma once

#include <fulmen/loop/trainer_context.hpp>

#include <cstdint>

namespace fulmen::detail {

/// Options::log_every_n_steps for callbacks: counts batches that stepped, as the loop does, and is asked
/// inside a batch.
class LogDue {
 public:
  /// To be told in on_train_batch_start.
  template <class Ctx>
  void batch_starts(Ctx& ctx) {
    step_ = next_step(ctx);
    ++batches_;
    due_ = (step_ + 1) % ctx.options().log_every_n_steps == 0;
  }
  /// The index of the step that the next batch is part of.
  template <class Ctx>
  std::int64_t next_step(Ctx& ctx) const {
    if constexpr (automatic_optimization<typename Ctx::Module>())
      return ctx.global_step();
    else
      return batches_;  // there each batch counts once, however many optimizers step in it
  }
  bool now(const Context& ctx) const { return due_ || ctx.should_stop(); }
  /// The index of the step that this batch is part of: what values are logged under.
  std::int64_t step() const { return step_; }

 private:
  bool due_ = false;
  std::int64_t step_ = 0, batches_ = 0;
};

}  // namespace fulmen::detail

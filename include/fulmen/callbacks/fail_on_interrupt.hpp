// FailOnInterrupt: a run that Ctrl-C ends, ends with an error.
#pragma once

#include <fulmen/compiled.hpp>
#include <fulmen/loop/context.hpp>

#if FULMEN_BODIES
#include <fulmen/error.hpp>
#include <fulmen/loop/interrupt.hpp>

#include <utility>
#endif

namespace fulmen {

/// Instead of leaving the process quietly after Ctrl-C, the stage throws a std::runtime_error, which scripts
/// that go on after trainer.fit() cannot overlook. Source: thunder.callbacks.FailOnInterrupt.
struct FailOnInterrupt {
  void setup() { thrown_ = false; }
  void on_exception(Context& ctx);

  bool thrown_ = false;  // public only because aggregates have no private members
};

#if FULMEN_BODIES
FULMEN_INLINE void FailOnInterrupt::on_exception(Context& ctx) {
  // The exception thrown here is told to all once more, to us as well.
  if (ctx.interrupted() && !std::exchange(thrown_, true))
    fail("{} was {}", to_string(ctx.stage()), detail::interruption_text(ctx.interrupted_by()));
}
#endif

}  // namespace fulmen

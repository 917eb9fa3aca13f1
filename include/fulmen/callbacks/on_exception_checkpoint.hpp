// OnExceptionCheckpoint: saves the state of a run that an exception or Ctrl-C ends.
#pragma once

#include <fulmen/checkpoint/atomic_file.hpp>
#include <fulmen/checkpoint/checkpoint.hpp>
#include <fulmen/compiled.hpp>
#include <fulmen/loop/context.hpp>

#include <filesystem>
#include <string>

#if FULMEN_BODIES
#include <fulmen/error.hpp>

#include <stdexcept>
#include <system_error>
#endif

namespace fulmen {

/// `OnExceptionCheckpoint{.dirpath = "checkpoints"}`: `trainer.load("checkpoints/on_exception.ckpt")` takes
/// the run back to where it was. A fit that is then done to its end removes the file. Source:
/// lightning.pytorch.callbacks.OnExceptionCheckpoint.
struct OnExceptionCheckpoint {
  static constexpr bool saves_checkpoints = true;

  std::filesystem::path dirpath{};        ///< made if it is not there; must be given
  std::string filename = "on_exception";  ///< without .ckpt

  std::filesystem::path ckpt_path() const { return dirpath / (filename + ".ckpt"); }

  /// @throws std::invalid_argument if dirpath or filename are empty
  void setup() const;

  template <class Ctx>
  void on_exception(Ctx& ctx) const {
    if (!ctx.writes_files() || dirpath.empty() || filename.empty()) return;  // setup has complained
    checkpoint::make_folder(dirpath, "OnExceptionCheckpoint");
    detail::save_checkpoint(ctx, ckpt_path());
  }
  void teardown(Context& ctx) const;
};

#if FULMEN_BODIES

FULMEN_INLINE void OnExceptionCheckpoint::setup() const {
  if (dirpath.empty())
    fail<std::invalid_argument>("OnExceptionCheckpoint::dirpath is empty, expected a folder");
  if (filename.empty())
    fail<std::invalid_argument>("OnExceptionCheckpoint::filename is empty, expected a name without .ckpt");
}

FULMEN_INLINE void OnExceptionCheckpoint::teardown(Context& ctx) const {
  // teardown comes after Ctrl-C, too; and a test of a model whose training failed leaves the file alone.
  if (ctx.stage() != Stage::fit || ctx.interrupted() || !ctx.writes_files()) return;
  std::error_code error;
  std::filesystem::remove(ckpt_path(), error);
  if (error) fail("OnExceptionCheckpoint: cannot remove '{}': {}", ckpt_path().string(), error.message());
}

#endif

}  // namespace fulmen

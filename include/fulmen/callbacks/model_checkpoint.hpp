// ModelCheckpoint: saves the last state of a run, and the best ones by a logged value.
#pragma once

#include <fulmen/callbacks/clock.hpp>
#include <fulmen/callbacks/monitor.hpp>
#include <fulmen/checkpoint/checkpoint.hpp>
#include <fulmen/checkpoint/state.hpp>
#include <fulmen/compiled.hpp>
#include <fulmen/loop/context.hpp>

#include <chrono>
#include <concepts>
#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <limits>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#if FULMEN_BODIES
#include <fulmen/checkpoint/atomic_file.hpp>
#include <fulmen/error.hpp>
#include <fulmen/loggers/hyperparameters.hpp>

#include <ATen/ops/scalar_tensor.h>
#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <stdexcept>
#include <system_error>
#include <tuple>
#endif

namespace fulmen {

/// Whether a ModelCheckpoint keeps last.ckpt: true, false, or SaveLast::link, a symbolic link to another of
/// its files where that holds the same.
class SaveLast {
 public:
  enum Kind : std::uint8_t { no, yes, link };
  constexpr SaveLast(std::same_as<bool> auto on) : kind_(on ? yes : no) {}
  constexpr SaveLast(Kind kind) : kind_(kind) {}
  template <std::size_t N>
  SaveLast(const char (&)[N]) {
    static_assert(
        N == 0, "fulmen: ModelCheckpoint::save_last is true, false or fulmen::SaveLast::link, not a string");
  }
  constexpr operator Kind() const { return kind_; }

 private:
  Kind kind_;
};

/// `ModelCheckpoint{.monitor = "val/loss"}` saves, at the end of each training epoch, the state of the run as
/// `epoch=E-step=S.ckpt` in `<run>/checkpoints` if no state has had a better value, and removes what was the
/// best before. Without a monitor each state takes the place of the one before. Beside them `last.ckpt` is
/// always the newest state, which an interrupted run goes on from; Ctrl-C ends a run with it. It is a hard
/// link where the state is in another file already, so that nothing is written twice.
///
/// Saved is at the epoch's end if the epoch has one validation run, at its end, or none; else after each
/// validation run, and last.ckpt at the epoch's end, too. Nothing is saved in a fast_dev_run, in the sanity
/// check or with Options::enable_checkpointing = false.
///
/// Source: lightning.pytorch.callbacks.ModelCheckpoint, whose names, defaults and file names these are, but
/// for save_last: there it is off, and follows the best states only.
///
/// Errors: std::runtime_error naming the file or folder that cannot be written (the files that there were are
/// whole then), or the monitored value that was not logged though it should have been by then.
struct ModelCheckpoint {
  static constexpr bool saves_checkpoints = true;

  std::filesystem::path dirpath{};  ///< empty: checkpoints/ in the run's folder
  /// Of the files, without .ckpt: `{epoch:02d}-{val/loss:.2f}` gives `epoch=03-val/loss=0.25`, in a folder
  /// `…-val`. Any logged value can be named, besides `epoch` and `step`; what was not logged is 0. The format
  /// is Python's for numbers (but for `%` and `,`). Empty: `{epoch}-{step}`.
  std::string filename{};
  std::string monitor{};           ///< name of a logged value; empty: what is saved last is the best
  bool verbose = false;            ///< a line on stderr for each value
  SaveLast save_last = true;       ///< keep last.ckpt
  std::int64_t save_top_k = 1;     ///< how many of the best are kept; -1: all. Without monitor: -1, 0 or 1
  bool save_on_exception = false;  ///< save when an exception ends fit, too
  bool save_weights_only = false;  ///< the module's weights only: nothing can go on from it
  Mode mode = Mode::min;           ///< of the monitored value
  bool auto_insert_metric_name = true;  ///< `{epoch}` gives `epoch=3`; false: `3`
  // When: one of three, or every_n_epochs = 1 where none is given.
  std::optional<std::int64_t> every_n_train_steps{};  ///< after every so many optimizer steps
  std::optional<std::chrono::duration<double>>
      train_time_interval{};                      ///< after the batch that runs when it is over
  std::optional<std::int64_t> every_n_epochs{};   ///< 0: never. last.ckpt is kept up to date in each epoch
  std::optional<bool> save_on_train_epoch_end{};  ///< false: after each validation run; unset: see above
  bool enable_version_counter = true;  ///< a name that is taken gets `-v1`; false: what is there is replaced

  std::string CHECKPOINT_JOIN_CHAR = "-";
  std::string CHECKPOINT_EQUALS_CHAR = "=";
  std::string CHECKPOINT_NAME_LAST = "last";  ///< a template like filename
  std::string FILE_EXTENSION = ".ckpt";
  std::int64_t STARTING_VERSION = 1;

  // What has happened so far; not to be given. Paths are absolute.
  std::filesystem::path best_model_path{};
  std::optional<double> best_model_score{};  ///< nothing without monitor
  std::filesystem::path last_model_path{};
  std::vector<std::pair<std::filesystem::path, double>> best_k_models{};  ///< with their values, as they came
  std::filesystem::path kth_best_model_path{};  ///< the worst of them, once there are save_top_k
  double kth_value =
      mode == Mode::min ? std::numeric_limits<double>::infinity() : -std::numeric_limits<double>::infinity();
  std::optional<double> current_score{};  ///< of what was saved last; NaN counts as the worst infinity

  /// @throws std::invalid_argument naming the option, its value and what was expected
  void setup(Context& ctx);
  void on_train_start() { time_checked_ = detail::steady_seconds(); }
  void on_train_epoch_start() { validations_ = 0; }
  template <class Ctx>
  void on_train_batch_end(Ctx& ctx) {
    if (watches_batches_) [[unlikely]]
      save(ctx, due_at_batch_end(ctx));
  }
  template <class Ctx>
  void on_validation_end(Ctx& ctx) {
    save(ctx, due_at_validation_end(ctx));
  }
  template <class Ctx>
  void on_train_epoch_end(Ctx& ctx) {
    save(ctx, due_at_epoch_end(ctx));
  }
  template <class Ctx>
  void on_train_end(Ctx& ctx) {
    save(ctx, due_at_train_end(ctx));
  }
  template <class Ctx>
  void on_exception(Ctx& ctx) {
    save(ctx, due_at_exception(ctx));
  }

  /// The newest last.ckpt (or last-v1.ckpt, ...) in this callback's folder; where that is the run's and there
  /// is none yet, of all runs of Options::default_root_dir/name. Empty: there is none.
  std::filesystem::path last_checkpoint(Context& ctx) const;
  const std::filesystem::path& best_checkpoint() const { return best_model_path; }

  /// Lightning's keys. A state of another folder brings best_model_path only.
  std::string state_key() const;
  State state_dict() const;
  void load_state_dict(const State& state);

  // Public only because aggregates have no private members.
  bool watches_batches_ = false;  // the one thing looked at after each batch
  bool deferred_ = false;         // a batch's save waits for the value that validation will bring
  bool validated_ = false, warned_ = false;
  int validations_ = -1;                         // of this epoch, as far as it began here: 0, 1; else -1
  std::int64_t saved_step_ = 0, last_step_ = 0;  // global_step of a file by filename, of last.ckpt
  double time_checked_ = 0;
  std::filesystem::path folder_{};

 private:
  /// What is to be saved.
  struct Due {
    bool best = false;       // a file by filename, if the value is good enough
    bool last = false;       // last.ckpt
    bool strict = true;      // it is an error if there is no value
    bool exception = false;  // a file by filename whatever the value
  };
  Due due_at_batch_end(Context& ctx);
  Due due_at_validation_end(Context& ctx);
  Due due_at_epoch_end(Context& ctx);
  Due due_at_train_end(Context& ctx);
  Due due_at_exception(Context& ctx);

  /// Files to be written, those to be removed then, and what the callback was before it knew of them.
  struct Files {
    explicit Files(const ModelCheckpoint& callback);
    ~Files();
    std::filesystem::path best, last, old_best, old_last;
    std::unique_ptr<ModelCheckpoint> before;
  };
  template <class Ctx>
  [[gnu::noinline]] void save(Ctx& ctx, Due due) {
    if (!due.best && !due.last) return;
    Files files(*this);
    try {
      choose_files(ctx, due, files);
      if (!files.best.empty()) detail::save_checkpoint(ctx, files.best, save_weights_only);
      if (!files.last.empty() && !link_last(files))
        detail::save_checkpoint(ctx, files.last, save_weights_only);
    } catch (...) {
      forget(files);
      throw;
    }
    remove_old(ctx, files);
  }
  /// Takes them into the results, which are part of what is saved.
  void choose_files(Context& ctx, const Due& due, Files& files);
  void forget(Files& files);
  void rank(Context& ctx, double value, Files& files);
  bool link_last(const Files& files) const;
  void remove_old(const Context& ctx, const Files& files) const;

  bool enabled(const Context& ctx) const;
  bool skips(const Context& ctx) const;
  bool saves_epochs(const Options& o) const;
  std::int64_t epochs_between() const;
  std::filesystem::path own_folder() const;
  void find_folder(Context& ctx);
  std::optional<double> value_of(Context& ctx, std::string_view name) const;
  std::string expand(std::string_view text, Context* ctx) const;
  std::filesystem::path free_path(Context& ctx, std::string_view text, const std::filesystem::path& own,
                                  const std::filesystem::path& taken);
};

#if FULMEN_BODIES

FULMEN_INLINE void ModelCheckpoint::setup(Context& ctx) {
  const auto at_least = [](const char* name, std::int64_t value, std::int64_t least) {
    if (value < least)
      fail<std::invalid_argument>("ModelCheckpoint::{} is {}, expected at least {}", name, value, least);
  };
  at_least("save_top_k", save_top_k, -1);
  at_least("every_n_train_steps", every_n_train_steps.value_or(0), 0);
  at_least("every_n_epochs", every_n_epochs.value_or(0), 0);
  const std::int64_t steps = every_n_train_steps.value_or(0);
  if ((steps >= 1) + (every_n_epochs.value_or(0) >= 1) + train_time_interval.has_value() > 1) {
    fail<std::invalid_argument>(
        "ModelCheckpoint: every_n_train_steps is {}, every_n_epochs is {} and train_time_interval is {}, "
        "expected one of them at most",
        steps, every_n_epochs.value_or(0),
        train_time_interval ? detail::format("{} s", train_time_interval->count()) : "not set");
  }
  if (monitor.empty() && save_top_k != -1 && save_top_k != 0 && save_top_k != 1) {
    fail<std::invalid_argument>(
        "ModelCheckpoint::save_top_k is {} and monitor is empty, expected the name of a logged value to "
        "choose "
        "by",
        save_top_k);
  }
  expand(filename, nullptr);
  expand(CHECKPOINT_NAME_LAST, nullptr);
  watches_batches_ = enabled(ctx) && (steps >= 1 || train_time_interval);
}

// ---------------------------------------------------------------------------------------------------- when

FULMEN_INLINE bool ModelCheckpoint::enabled(const Context& ctx) const {
  return ctx.options().enable_checkpointing && ctx.writes_files();
}

FULMEN_INLINE bool ModelCheckpoint::skips(const Context& ctx) const {
  return !enabled(ctx) || ctx.stage() != Stage::fit || ctx.sanity_checking() ||
         saved_step_ == ctx.global_step();
}

FULMEN_INLINE std::int64_t ModelCheckpoint::epochs_between() const {
  return every_n_epochs.value_or(every_n_train_steps || train_time_interval ? 0 : 1);
}

FULMEN_INLINE bool ModelCheckpoint::saves_epochs(const Options& o) const {
  return save_on_train_epoch_end.value_or(
      o.check_val_every_n_epoch == 1 && (o.limit_val_batches.is_zero() || o.val_check_interval.is_default()));
}

FULMEN_INLINE ModelCheckpoint::Due ModelCheckpoint::due_at_batch_end(Context& ctx) {
  const Options& o = ctx.options();
  const std::int64_t steps = every_n_train_steps.value_or(0);
  bool due = steps >= 1 && ctx.global_step() % steps == 0;
  if (train_time_interval) {
    const double now = detail::steady_seconds();
    if (now - time_checked_ >= train_time_interval->count()) {
      due = true;
      time_checked_ = now;
    }
  }
  if (!due) return {};
  if (!monitor.empty()) {
    if (!value_of(ctx, monitor)) {
      // Validation will bring it; the state as such need not wait.
      deferred_ = true;
      return {.last = !skips(ctx)};
    }
    // A value is there, but of the validation before the one that comes next.
    const bool is_last = ctx.num_batches() && ctx.batch_idx() + 1 == *ctx.num_batches();
    if (is_last && !saves_epochs(o) && !o.limit_val_batches.is_zero() &&
        (o.check_val_every_n_epoch == 0 || (ctx.epoch() + 1) % o.check_val_every_n_epoch == 0)) {
      deferred_ = true;
      return {};
    }
  }
  if (skips(ctx)) return {};
  return {.best = true, .last = true};
}

FULMEN_INLINE ModelCheckpoint::Due ModelCheckpoint::due_at_validation_end(Context& ctx) {
  if (ctx.stage() == Stage::fit && !ctx.sanity_checking()) {
    validations_ = 1;
    validated_ = true;
  }
  if (skips(ctx) || saves_epochs(ctx.options())) return {};
  const std::int64_t epochs = epochs_between();
  return {.best = std::exchange(deferred_, false) || (epochs >= 1 && (ctx.epoch() + 1) % epochs == 0),
          .last = true};
}

FULMEN_INLINE ModelCheckpoint::Due ModelCheckpoint::due_at_epoch_end(Context& ctx) {
  const Options& o = ctx.options();
  // Without a validation loader, validation is not there to be waited for.
  const bool validation_is_due =
      o.check_val_every_n_epoch > 0 && (ctx.epoch() + 1) % o.check_val_every_n_epoch == 0;
  const bool no_validation = std::exchange(validations_, -1) == 0 && validation_is_due;
  if (skips(ctx)) return {};
  const bool instead = !saves_epochs(o) && !save_on_train_epoch_end && no_validation;
  if (!saves_epochs(o) && !instead) return {.last = true};
  const std::int64_t epochs = epochs_between();
  return {.best = (instead && std::exchange(deferred_, false)) ||
                  (epochs >= 1 && (ctx.epoch() + 1) % epochs == 0),
          .last = true,
          .strict = validated_ || (validation_is_due && !o.limit_val_batches.is_zero())};
}

FULMEN_INLINE ModelCheckpoint::Due ModelCheckpoint::due_at_train_end(Context& ctx) {
  return {.last = enabled(ctx)};
}

FULMEN_INLINE ModelCheckpoint::Due ModelCheckpoint::due_at_exception(Context& ctx) {
  if (!enabled(ctx) || ctx.stage() != Stage::fit) return {};
  if (save_on_exception && saved_step_ != ctx.global_step())
    return {.best = true, .last = true, .exception = true};
  if (!ctx.interrupted()) return {};
  last_step_ = -1;  // more has happened since, even if no step has
  return {.last = true};
}

// ---------------------------------------------------------------------------------------------------- what

FULMEN_INLINE ModelCheckpoint::Files::Files(const ModelCheckpoint& callback)
    : before(std::make_unique<ModelCheckpoint>(callback)) {}
FULMEN_INLINE ModelCheckpoint::Files::~Files() = default;

FULMEN_INLINE void ModelCheckpoint::forget(Files& files) { *this = std::move(*files.before); }

FULMEN_INLINE void ModelCheckpoint::choose_files(Context& ctx, const Due& due, Files& files) {
  const bool best = due.exception || (due.best && save_top_k != 0);
  if (!best && !(due.last && save_last)) return;  // the run may have no folder, and needs none
  find_folder(ctx);
  if (due.exception) {
    files.best = folder_ / (expand(filename, &ctx) + FILE_EXTENSION);
    if (verbose) fmt::print(stderr, "ModelCheckpoint: saving '{}' after an exception\n", files.best.string());
  } else if (best && monitor.empty()) {
    files.best = free_path(ctx, filename, best_model_path, {});
    if (save_top_k == 1) files.old_best = best_model_path;
    best_model_path = files.best;
  } else if (best) {
    const std::optional<double> value = value_of(ctx, monitor);
    if (value) {
      rank(ctx, *value, files);
    } else {
      const std::string message = detail::not_logged("ModelCheckpoint", monitor, ctx.metrics());
      if (due.strict) fail("{}", message);
      if (!std::exchange(warned_, true)) fmt::print(stderr, "{}\n", message);
    }
  }
  if (!files.best.empty()) saved_step_ = ctx.global_step();
  if (due.last && save_last && (!files.best.empty() || last_step_ != ctx.global_step())) {
    files.last = free_path(ctx, CHECKPOINT_NAME_LAST, last_model_path, files.best);
    files.old_last = std::exchange(last_model_path, files.last);
    last_step_ = ctx.global_step();
  }
  for (const std::filesystem::path* file : {&files.best, &files.last}) {
    if (!file->empty()) checkpoint::make_folder(file->parent_path(), "ModelCheckpoint");
  }
}

FULMEN_INLINE void ModelCheckpoint::rank(Context& ctx, double value, Files& files) {
  const auto find = [&](const std::filesystem::path& path) {
    return std::find_if(best_k_models.begin(), best_k_models.end(),
                        [&](const auto& model) { return model.first == path; });
  };
  // The first of those that are equal, as Python's min and max.
  const auto extreme = [&](Mode which) {
    auto found = best_k_models.begin();
    for (auto it = found; it != best_k_models.end(); ++it) {
      if (detail::is_better(which, it->second, found->second)) found = it;
    }
    return found;
  };
  const Mode opposite = mode == Mode::min ? Mode::max : Mode::min;
  const auto count = static_cast<std::int64_t>(best_k_models.size());
  const std::int64_t k = save_top_k == -1 ? count + 1 : save_top_k;
  if (count >= k) {
    auto worst = find(kth_best_model_path);
    if (worst == best_k_models.end()) worst = extreme(opposite);  // of a run that kept more
    if (!detail::is_better(mode, value, worst->second)) {
      if (verbose) {
        fmt::print(stderr, "ModelCheckpoint: epoch {}, global step {}: '{}' is {:.5f}, not in the top {}\n",
                   ctx.epoch(), ctx.global_step(), monitor, value, k);
      }
      return;
    }
    files.old_best = worst->first;
    best_k_models.erase(worst);
  }
  if (std::isnan(value)) {
    value = std::numeric_limits<double>::infinity();
    if (mode == Mode::max) value = -value;
  }
  files.best = free_path(ctx, filename, files.old_best, {});
  current_score = value;
  const auto same = find(files.best);
  if (same != best_k_models.end())
    same->second = value;
  else
    best_k_models.emplace_back(files.best, value);
  if (static_cast<std::int64_t>(best_k_models.size()) >= k)
    std::tie(kth_best_model_path, kth_value) = *extreme(opposite);
  const auto best = extreme(mode);
  best_model_path = best->first;
  best_model_score = best->second;
  if (verbose) {
    fmt::print(
        stderr,
        "ModelCheckpoint: epoch {}, global step {}: '{}' is {:.5f} (best {:.5f}), saving '{}' as top {}\n",
        ctx.epoch(), ctx.global_step(), monitor, value, best->second, files.best.string(), k);
  }
}

FULMEN_INLINE bool ModelCheckpoint::link_last(const Files& files) const {
  if (files.best.empty()) return false;
  return checkpoint::replace_by_link(files.last, files.best, /*symbolic=*/save_last == SaveLast::link);
}

FULMEN_INLINE void ModelCheckpoint::remove_old(const Context& ctx, const Files& files) const {
  for (const std::filesystem::path& old : {files.old_best, files.old_last}) {
    if (old.empty() || old == files.best || old == files.last) continue;
    // The file that the run goes on from stays.
    if (!ctx.ckpt_path().empty() && std::filesystem::absolute(ctx.ckpt_path()).lexically_normal() == old) continue;
    // Of another folder is what an earlier run has left.
    const std::filesystem::path inside = old.lexically_relative(folder_);
    if (inside.empty() || *inside.begin() == "..") continue;
    std::error_code error;
    std::filesystem::remove(old, error);
    if (error) fail("ModelCheckpoint: cannot remove '{}': {}", old.string(), error.message());
  }
}

// ---------------------------------------------------------------------------------------------------- names

FULMEN_INLINE std::filesystem::path ModelCheckpoint::own_folder() const {
  if (dirpath.empty() || !folder_.empty()) return folder_;
  std::error_code error;
  std::filesystem::path path = std::filesystem::weakly_canonical(dirpath, error);
  if (error) path = std::filesystem::absolute(dirpath).lexically_normal();
  if (!path.has_filename()) path = path.parent_path();
  return path;
}

FULMEN_INLINE void ModelCheckpoint::find_folder(Context& ctx) {
  if (!folder_.empty()) return;
  folder_ = own_folder();
  if (folder_.empty()) folder_ = std::filesystem::absolute(ctx.run_dir() / "checkpoints").lexically_normal();
}

FULMEN_INLINE std::optional<double> ModelCheckpoint::value_of(Context& ctx, std::string_view name) const {
  const std::optional<double> found = ctx.metrics().find(name);
  if (name != "epoch" && name != "step") return found;
  if (found) return std::trunc(*found);
  return static_cast<double>(name == "epoch" ? ctx.epoch() : ctx.global_step());
}

/// Puts values into a template of file names; without a context, sees whether it is one.
FULMEN_INLINE std::string ModelCheckpoint::expand(std::string_view text, Context* ctx) const {
  const std::string standard = "{epoch}" + CHECKPOINT_JOIN_CHAR + "{step}";
  if (text.empty()) text = standard;
  const auto wrong = [&](std::string_view part) {
    fail<std::invalid_argument>(
        "ModelCheckpoint: '{}' in the file name '{}', expected names of values in braces, with a format of "
        "numbers after a colon, if any: {{epoch:02d}}",
        part, text);
  };
  const auto number = [&](double value, bool whole, const std::string& format) {
    if (format.empty())
      return whole ? std::to_string(static_cast<std::int64_t>(value)) : detail::float_text(value);
    const std::string field = "{:" + format + "}";
    whole = whole && format.find('.') == format.npos &&
            std::string_view("eEfFgG").find(format.back()) == std::string_view::npos;
    return whole ? fmt::format(fmt::runtime(field), static_cast<std::int64_t>(value))
                 : fmt::format(fmt::runtime(field), value);
  };
  std::string out;
  for (std::size_t at = 0; at < text.size();) {
    const std::size_t open = std::min(text.find_first_of("{}", at), text.size());
    out += text.substr(at, open - at);
    if (open == text.size()) break;
    const std::size_t close = text.find('}', open);
    if (text[open] == '}' || close == text.npos) wrong(text.substr(open));
    const std::string_view field = text.substr(open + 1, close - open - 1),
                           name = field.substr(0, field.find(':'));
    const std::string format(field.size() > name.size() ? field.substr(name.size() + 1) : "");
    if (name.empty() || name.find('{') != name.npos) wrong(text.substr(open, close + 1 - open));
    if (auto_insert_metric_name) (out += name) += CHECKPOINT_EQUALS_CHAR;
    const std::optional<double> value = ctx != nullptr ? value_of(*ctx, name) : std::nullopt;
    const bool whole = !value || name == "epoch" || name == "step";
    try {
      out += number(value.value_or(0), whole, format);
    } catch (const fmt::format_error&) {
      wrong(text.substr(open, close + 1 - open));
    }
    at = close + 1;
  }
  return out;
}

/// The path of a new file: with a version where there is one of this name, unless it is `own`.
FULMEN_INLINE std::filesystem::path ModelCheckpoint::free_path(Context& ctx, std::string_view text,
                                                               const std::filesystem::path& own,
                                                               const std::filesystem::path& taken) {
  const std::string name = expand(text, &ctx);
  std::filesystem::path path = folder_ / (name + FILE_EXTENSION);
  if (!enable_version_counter) return path;
  for (std::int64_t version = STARTING_VERSION;
       path != own && (path == taken || std::filesystem::exists(path)); ++version) {
    path = folder_ / (name + CHECKPOINT_JOIN_CHAR + "v" + std::to_string(version) + FILE_EXTENSION);
  }
  return path;
}

FULMEN_INLINE std::filesystem::path ModelCheckpoint::last_checkpoint(Context& ctx) const {
  namespace fs = std::filesystem;
  const std::string prefix = CHECKPOINT_NAME_LAST.substr(0, CHECKPOINT_NAME_LAST.find('{'));
  fs::path newest;
  fs::file_time_type newest_time{};
  std::error_code error;
  const auto look_into = [&](const fs::path& dir) {
    for (fs::directory_iterator it(dir, error), end; !error && it != end; it.increment(error)) {
      const fs::path& path = it->path();
      if (path.extension() != FILE_EXTENSION || !path.filename().string().starts_with(prefix)) continue;
      std::error_code gone;  // a link to nothing
      const fs::file_time_type time = it->last_write_time(gone);
      if (gone || !it->is_regular_file(gone) || (!newest.empty() && time <= newest_time)) continue;
      newest = path;
      newest_time = time;
    }
  };
  if (!dirpath.empty()) {
    look_into(own_folder());
  } else if (ctx.has_run_dir()) {
    look_into(ctx.run_dir() / "checkpoints");
  } else {
    std::error_code unread;
    const fs::path runs = ctx.options().default_root_dir / ctx.options().name;
    for (fs::directory_iterator it(runs, unread), end; !unread && it != end; it.increment(unread)) {
      if (it->path().filename().string().starts_with("version_")) look_into(it->path() / "checkpoints");
    }
  }
  return newest;
}

// ---------------------------------------------------------------------------------------------------- state

FULMEN_INLINE std::string ModelCheckpoint::state_key() const {
  std::string interval = "None";
  if (train_time_interval) {
    // As Python has its timedelta.
    const auto all = std::llround(train_time_interval->count() * 1e6);
    const long long day = 86'400'000'000, days = all / day, seconds = all % day / 1'000'000,
                    rest = all % 1'000'000;
    std::string parts;
    const auto add = [&](const char* name, long long value) {
      if (value != 0) parts += fmt::format("{}{}={}", parts.empty() ? "" : ", ", name, value);
    };
    add("days", days);
    add("seconds", seconds);
    add("microseconds", rest);
    interval = "datetime.timedelta(" + (parts.empty() ? "0" : parts) + ")";
  }
  return fmt::format(
      "ModelCheckpoint{{'monitor': {}, 'mode': '{}', 'every_n_train_steps': {}, 'every_n_epochs': {}, "
      "'train_time_interval': {}}}",
      monitor.empty() ? "None" : "'" + monitor + "'", mode == Mode::min ? "min" : "max",
      every_n_train_steps.value_or(0), epochs_between(), interval);
}

FULMEN_INLINE State ModelCheckpoint::state_dict() const {
  // Scores are tensors, as Lightning has them.
  const auto score = [](double value) { return at::scalar_tensor(value, at::kDouble); };
  const auto maybe = [&](const std::optional<double>& value) {
    return value ? std::optional(score(*value)) : std::nullopt;
  };
  State models;
  for (const auto& [path, value] : best_k_models) models.set(path.string(), score(value));
  const std::filesystem::path dir = own_folder();
  State state("ModelCheckpoint");
  state.set("monitor", monitor.empty() ? std::nullopt : std::optional(monitor));
  state.set("best_model_score", maybe(best_model_score)).set("best_model_path", best_model_path.string());
  state.set("current_score", maybe(current_score));
  state.set("dirpath", dir.empty() ? std::nullopt : std::optional(dir.string()));
  state.set("best_k_models", models).set("kth_best_model_path", kth_best_model_path.string());
  state.set("kth_value", score(kth_value)).set("last_model_path", last_model_path.string());
  if (deferred_) state.set("_defer_save_until_validation", true);
  return state;
}

FULMEN_INLINE void ModelCheckpoint::load_state_dict(const State& state) {
  const std::string own = own_folder().string(), best = state.get<std::string>("best_model_path");
  const std::string from = state.get_or<std::optional<std::string>>("dirpath", own).value_or("");
  if (from == own) {
    const State models = state.get_or<State>("best_k_models", State());
    std::vector<std::pair<std::filesystem::path, double>> loaded;
    for (const std::string& path : models.keys())
      loaded.emplace_back(path, models.get<at::Tensor>(path).item<double>());
    const auto score = state.get<std::optional<at::Tensor>>("best_model_score");
    const double kth =
        state.contains("kth_value") ? state.get<at::Tensor>("kth_value").item<double>() : kth_value;
    std::string kth_path = state.get_or<std::string>("kth_best_model_path", kth_best_model_path.string());
    last_model_path = state.get_or<std::string>("last_model_path", last_model_path.string());
    best_model_score = score ? std::optional(score->item<double>()) : std::nullopt;
    best_k_models = std::move(loaded);
    kth_best_model_path = std::move(kth_path);
    kth_value = kth;
  } else if (!dirpath.empty()) {
    fmt::print(
        stderr,
        "ModelCheckpoint: the checkpoint is of the folder '{}', not '{}': of its state best_model_path "
        "alone is taken\n",
        from, own);
  }
  best_model_path = best;
  deferred_ = state.get_or<bool>("_defer_save_until_validation", false);
  // Steps and epochs have been counted by another run.
  saved_step_ = last_step_ = 0;
  validations_ = -1;
}

#endif

}  // namespace fulmen

// prefetch: makes the next batches of any loader in a background thread while the step runs.
#pragma once

#include <fulmen/compiled.hpp>
#include <fulmen/data/combined_loader.hpp>
#include <fulmen/data/loader.hpp>

#include <condition_variable>
#include <cstddef>
#include <cstdint>
#include <deque>
#include <exception>
#include <iterator>
#include <memory>
#include <mutex>
#include <optional>
#include <thread>
#include <type_traits>
#include <utility>

#if FULMEN_BODIES
#include <fulmen/error.hpp>

#include <ATen/Parallel.h>
#include <ATen/ThreadLocalState.h>

#include <stdexcept>
#endif

namespace fulmen {

struct PrefetchOptions {
  std::int64_t batches = 2;  ///< how many batches may be ready, or in the making, beyond the one in use
  int threads = 1;  ///< of LibTorch's threads, for operations in the background (at::set_num_threads there)
};

namespace detail {

/// Can say where it is and be put there.
template <class L>
concept StatefulLoader = requires(L& loader) {
  loader.load_state_dict(loader.state_dict());
};

template <class L>
struct StateOfLoader {
  using type = None;
};
template <StatefulLoader L>
struct StateOfLoader<L> {
  using type = std::remove_cvref_t<decltype(std::declval<L&>().state_dict())>;
};

/// Loaders that begin others in their `++`, where those may draw an order.
template <class L>
inline constexpr bool begins_late = false;
template <class... L>
inline constexpr bool begins_late<CombinedLoader<CombineMode::MaxSizeCycle, L...>> = true;
template <class... L>
inline constexpr bool begins_late<CombinedLoader<CombineMode::Sequential, L...>> = true;

/// Throws std::invalid_argument if an option is below 1.
void check_prefetch(const PrefetchOptions& options);

/// A thread that calls work(walk) in the caller's modes (grad mode and such), with `threads` of LibTorch's
/// threads. Their numbers are set, here and there, when it returns.
std::thread start_in_background(int threads, void (*work)(void*), void* walk);

/// One walk through a loader: a thread that makes batches, and a queue to the thread that uses them.
template <class L>
class PrefetchWalk {
 public:
  using Batch = BatchOf<L>;
  using State = typename StateOfLoader<L>::type;

  /// Begins the walk in the caller's thread, so that an order is drawn there, when it would be without
  /// prefetching.
  PrefetchWalk(L& loader, const PrefetchOptions& options)
      : loader_(&loader),
        at_(loader.begin()),
        end_(loader.end()),
        capacity_(static_cast<std::size_t>(options.batches)) {
    static_cast<void>(at_ != end_);  // a CombinedLoader that goes on in an epoch puts off to begin its loaders until then
    thread_ = start_in_background(
        options.threads, [](void* walk) { static_cast<PrefetchWalk*>(walk)->work(); }, this);
  }
  ~PrefetchWalk() { stop(); }
  PrefetchWalk(const PrefetchWalk&) = delete;
  PrefetchWalk& operator=(const PrefetchWalk&) = delete;

  /// Waits for the batch in the making, if any, and drops what is ready.
  void stop() {
    if (!thread_.joinable()) return;
    {
      const std::lock_guard lock(mutex_);
      stopped_ = true;
    }
    room_.notify_one();
    thread_.join();
    cut_short_ = !queue_.empty() || current_;
    state_now_ = state();
    queue_.clear();
    current_.reset();
  }

  /// Whether there are no more batches; waits until that is known. Throws what the loader threw here.
  bool over() { return !settle(); }

  Batch& current() {
    settle();
    used_ = true;
    return current_->batch;
  }

  void next() {
    settle();
    current_.reset();
    used_ = false;
  }

  /// What the loader's state would be if its batches were made where they are used.
  State state() {
    if (state_now_) return *state_now_;
    if (!current_ && !take()) return last_;
    return used_ ? current_->after : current_->before;
  }
  bool cut_short() const { return cut_short_; }

 private:
  struct Item {
    Batch batch;
    State before, after;  // it was made
  };

  State loader_state() const {
    if constexpr (StatefulLoader<L>)
      return loader_->state_dict();
    else
      return {};
  }

  void work() {
    std::exception_ptr error;
    State before = loader_state();
    try {
      while (wait_for_room() && at_ != end_) {
        Item item{*at_, before, before};
        item.after = loader_state();
        {
          const std::lock_guard lock(mutex_);
          queue_.push_back(std::move(item));
        }
        changed_.notify_one();
        ++at_;
        before = loader_state();
      }
    } catch (...) {
      error = std::current_exception();
    }
    {
      const std::lock_guard lock(mutex_);
      done_ = true;
      error_ = error;
      last_ = std::move(before);
    }
    changed_.notify_one();
  }

  /// A queue that was full is filled again when half of it is empty, so that threads wake each other less
  /// often.
  bool wait_for_room() {
    std::unique_lock lock(mutex_);
    if (queue_.size() >= capacity_)
      room_.wait(lock, [&] { return stopped_ || queue_.size() <= capacity_ / 2; });
    return !stopped_;
  }

  /// Takes the next item; false if there is none.
  bool take() {
    bool half_empty = false;
    {
      std::unique_lock lock(mutex_);
      changed_.wait(lock, [&] { return !queue_.empty() || done_; });
      if (queue_.empty()) return false;
      current_.emplace(std::move(queue_.front()));
      queue_.pop_front();
      half_empty = queue_.size() <= capacity_ / 2;
    }
    if (half_empty) room_.notify_one();
    return true;
  }

  bool settle() {
    if (current_ || take()) [[likely]]
      return true;
    if (error_) std::rethrow_exception(error_);
    return false;
  }

  // The background thread's, until it is joined.
  L* loader_;
  decltype(std::declval<L&>().begin()) at_;
  decltype(std::declval<L&>().end()) end_;

  const std::size_t capacity_;
  std::mutex mutex_;
  std::condition_variable changed_, room_;
  std::deque<Item> queue_;                // guarded by the mutex, as the next three
  bool stopped_ = false, done_ = false;  // done_: the background thread has left the loader
  std::exception_ptr error_;
  State last_{};

  // The using thread's.
  std::optional<Item> current_;
  bool used_ = false, cut_short_ = false;
  std::optional<State> state_now_;
  std::thread thread_;
};

}  // namespace detail

/// A loader whose batches are made in a background thread: see prefetch().
///
/// @tparam L a loader (or a pointer to one): by reference where it was an lvalue, else by value
template <class L>
class PrefetchLoader {
  using Range = detail::RangeOf<L>;
  using Walk = detail::PrefetchWalk<Range>;

 public:
  /// @throws std::invalid_argument if an option is below 1
  PrefetchLoader(L&& loader, const PrefetchOptions& options)
      : loader_(std::forward<L>(loader)), options_(options) {
    detail::check_prefetch(options);
  }

  /// The walk ends, and its thread, with the iterator.
  class Iterator {
   public:
    using iterator_category = std::input_iterator_tag;
    using value_type = typename Walk::Batch;
    using difference_type = std::ptrdiff_t;
    using pointer = value_type*;
    using reference = value_type&;

    explicit Iterator(const std::shared_ptr<Walk>& walk) : walk_(walk) {}
    Iterator(Iterator&&) = default;
    Iterator& operator=(Iterator&& other) noexcept {
      std::swap(walk_, other.walk_);
      return *this;
    }
    ~Iterator() {
      if (walk_) walk_->stop();
    }
    reference operator*() const { return walk_->current(); }
    Iterator& operator++() {
      walk_->next();
      return *this;
    }
    void operator++(int) { walk_->next(); }
    bool operator==(std::default_sentinel_t) const { return walk_->over(); }

   private:
    std::shared_ptr<Walk> walk_;
  };

  /// Begins an epoch, and ends a walk that still goes on.
  Iterator begin() {
    Range& loader = range();
    if (const std::shared_ptr<Walk> last = end_walk()) {
      // What was made and never used comes again, where the loader can go back.
      if constexpr (detail::StatefulLoader<Range>) {
        if (last->cut_short()) loader.load_state_dict(last->state());
      }
    }
    walk_ = std::make_shared<Walk>(loader, options_);
    return Iterator(walk_);
  }
  std::default_sentinel_t end() const { return {}; }

  /// Batches in an epoch.
  auto size() const requires detail::has_size<Range> { return range().size(); }

  bool shuffles() const requires detail::can_stop_shuffling<Range> && requires(const Range& l) {
    l.shuffles();
  }
  { return range().shuffles(); }
  /// From the next epoch on. Not while a walk goes on.
  void shuffle(bool on) requires detail::can_stop_shuffling<Range> { range().shuffle(on); }

  /// The state of the loader as if it had made no batch but those that were used.
  auto state_dict() requires detail::StatefulLoader<Range> {
    return walk_ ? walk_->state() : range().state_dict();
  }
  /// Ends a walk that still goes on.
  template <class State>
    requires detail::StatefulLoader<Range>
  void load_state_dict(const State& state) {
    end_walk();
    range().load_state_dict(state);
  }
  void end_epoch() requires requires(Range& r) { r.end_epoch(); }
  {
    end_walk();
    range().end_epoch();
  }

 private:
  std::shared_ptr<Walk> end_walk() {
    if (walk_) walk_->stop();
    return std::exchange(walk_, nullptr);
  }
  Range& range() { return detail::loader_of(loader_, "prefetch"); }
  const Range& range() const {
    if constexpr (Loader<std::remove_reference_t<L>>)
      return loader_;
    else
      return *loader_;
  }

  L loader_;
  PrefetchOptions options_;
  std::shared_ptr<Walk> walk_;  // kept when it has ended, for its state
};

/// Has a background thread make the next batches of a loader while this thread uses the last one:
/// `auto ahead = prefetch(train, {.batches = 2}); trainer.fit(ahead);`. torch.utils.data.DataLoader's
/// prefetch_factor with one worker, which here is a thread and sees the same memory.
///
/// Batches, their order and their bits are those of the loader. An exception of the loader's comes out where
/// its batch would have. begin() is called by the caller; `*`, `++` and the comparison with end() by the
/// background thread. So the loader
/// - must not share with the step anything that either of them writes: no module, no memory that each batch
/// is written to anew;
/// - must not draw from LibTorch's default generator but in begin(): which thread draws first would be
/// chance. Draw a seed in
///   begin(), as TensorLoader does, and use a generator of its own.
///
/// @param loader a range of batches or a pointer to one; an lvalue is referred to and must outlive the result
/// @throws std::invalid_argument if an option is below 1
template <class L>
auto prefetch(L&& loader, const PrefetchOptions& options = {}) {
  constexpr bool is_loader =
      Loader<std::remove_reference_t<L>> || detail::LoaderPointer<std::remove_reference_t<L>>;
  static_assert(
      is_loader,
      "fulmen: prefetch(loader, options): the loader must be a range of batches or a pointer to one");
  constexpr bool begins_late = detail::begins_late<std::remove_cvref_t<L>>;
  static_assert(!begins_late,
                "fulmen: prefetch(combined(...)): this mode begins loaders in between, where they may draw "
                "random numbers; "
                "prefetch each of them instead: combined(mode, prefetch(a), prefetch(b))");
  if constexpr (is_loader && !begins_late) return PrefetchLoader<L>(std::forward<L>(loader), options);
}

#if FULMEN_BODIES
FULMEN_INLINE void detail::check_prefetch(const PrefetchOptions& options) {
  if (options.batches < 1)
    fail<std::invalid_argument>("prefetch: batches is {}, expected at least 1", options.batches);
  if (options.threads < 1)
    fail<std::invalid_argument>("prefetch: threads is {}, expected at least 1", options.threads);
}

FULMEN_INLINE std::thread detail::start_in_background(int threads, void (*work)(void*), void* walk) {
  // set_num_threads() is for the calling thread and for those that ask for the first time later; the latter
  // is undone.
  const int callers = at::get_num_threads();
  std::mutex mutex;
  std::condition_variable changed;
  bool started = false;
  std::thread thread([&, threads, work, walk, caller = at::ThreadLocalState()] {
    at::get_num_threads();  // the first time
    at::set_num_threads(threads);
    {
      // Told with the lock held: without it the caller could have returned, and `changed` be gone.
      const std::lock_guard lock(mutex);
      started = true;
      changed.notify_one();
    }
    const at::ThreadLocalStateGuard as_caller(caller);  // grad mode, inference mode, autocast
    work(walk);
  });
  {
    std::unique_lock lock(mutex);
    changed.wait(lock, [&] { return started; });
  }
  at::set_num_threads(callers);
  return thread;
}
#endif

}  // namespace fulmen

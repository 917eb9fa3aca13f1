// BackgroundWriter: a thread that appends to files what loggers give it, so that training does not wait for
// the disk.
#pragma once

#include <fulmen/compiled.hpp>

#include <chrono>
#include <cstddef>
#include <filesystem>
#include <memory>
#include <string>
#include <string_view>

#if FULMEN_BODIES
#include <fulmen/error.hpp>

#include <fcntl.h>
#include <pthread.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <condition_variable>
#include <csignal>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <deque>
#include <mutex>
#include <stdexcept>
#include <system_error>
#include <thread>
#include <utility>
#include <vector>
#endif

namespace fulmen {

struct BackgroundWriterOptions {
  std::chrono::duration<double> interval{1};     ///< so long at most are bytes kept from the file
  std::size_t max_bytes = std::size_t{1} << 23;  ///< so many at most are kept; append() waits for room
};

/// Appends bytes to files, to each in the order of the calls, in a thread of its own:
///
///   BackgroundWriter writer("log file");
///   const std::size_t file = writer.add(path);
///   writer.append(file, "a line\n");
///
/// What was appended is in the file after flush(), when the writer is gone, and after std::exit or a return
/// from main, for writers that nobody destroys. A process that is killed loses at most what the last
/// `interval` brought; std::quick_exit and _exit are such ends. A record that is being written then may be
/// cut.
///
/// Errors of the disk are kept: the next append() or flush() throws them as std::runtime_error naming the
/// file. Nothing is given up: what could not be written is tried again, and goes on where it stopped. What
/// the destructor could not write it reports on stderr.
///
/// May be used from several threads. In a child made by fork(), which has no such thread, it does nothing.
class BackgroundWriter {
 public:
  /// @param kind what messages call its files
  /// @throws std::invalid_argument naming the option that is not positive.
  explicit BackgroundWriter(std::string kind, BackgroundWriterOptions options = {});
  BackgroundWriter(BackgroundWriter&&) noexcept;
  BackgroundWriter& operator=(BackgroundWriter&&) noexcept;
  ~BackgroundWriter();

  /// A file to append to, made now if there is none, with `head` as its first bytes from here on. @return its
  /// number.
  std::size_t add(const std::filesystem::path& path, std::string_view head = {});
  /// Appends bytes. They are taken even if an error of an earlier call is thrown, unless there is no room for
  /// them.
  void append(std::size_t file, std::string_view bytes);
  /// Waits until all that was appended is in the files (in the system's memory: not fsync).
  void flush();

 private:
  struct State;
  std::unique_ptr<State> state_;
};

#if FULMEN_BODIES

struct BackgroundWriter::State {
  struct File {
    std::filesystem::path path;
    std::string pending{};    // appended since the thread last took bytes
    std::string writing{};    // what the thread took
    std::size_t written = 0;  // of it
  };

  State(std::string kind_of_files, BackgroundWriterOptions all_options)
      : kind(std::move(kind_of_files)), options(all_options), process(::getpid()) {
    if (!(options.interval.count() > 0)) {
      fail<std::invalid_argument>("{}: interval is {} s, expected more than 0", kind,
                                  options.interval.count());
    }
    if (options.max_bytes == 0) fail<std::invalid_argument>("{}: max_bytes is 0, expected at least 1", kind);
    live(+1);
  }
  State(const State&) = delete;
  State& operator=(const State&) = delete;

  ~State() {
    live(-1);
    if (!thread.joinable()) return;
    {
      const std::lock_guard lock(mutex);
      stop = true;
    }
    wake.notify_one();
    thread.join();
    if (!error.empty()) std::fprintf(stderr, "fulmen: %s\n", error.c_str());
  }

  // All writers there are, so that they can be flushed at exit. Never destroyed: writers in static objects
  // may outlive whatever is destroyed at exit.
  struct Live {
    std::mutex mutex;
    std::vector<State*> all;
  };
  static Live& all_live() {
    static Live& live = []() -> Live& {
      std::atexit(flush_all);
      return *new Live;
    }();
    return live;
  }
  void live(int change) {
    Live& them = all_live();
    const std::lock_guard lock(them.mutex);
    if (change > 0)
      them.all.push_back(this);
    else
      std::erase(them.all, this);
  }
  static void flush_all() {
    Live& them = all_live();
    const std::lock_guard lock(them.mutex);
    for (State* state : them.all) {
      if (state->process != ::getpid()) continue;
      try {
        state->flush();
      } catch (const std::exception& failure) {
        std::fprintf(stderr, "fulmen: %s\n", failure.what());
      }
    }
  }

  // Writes what was taken. @return how many bytes; on errors `failure` says why it is not all.
  std::size_t write(File& file, std::string& failure) const {
    const std::size_t before = file.written;
    // Opened anew each time: a run may log under more names than a process may have files open.
    const int fd = ::open(file.path.c_str(), O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0666);
    int code = fd < 0 ? errno : 0;
    while (code == 0 && file.written < file.writing.size()) {
      const ssize_t n = ::write(fd, file.writing.data() + file.written, file.writing.size() - file.written);
      if (n >= 0)
        file.written += static_cast<std::size_t>(n);
      else if (errno != EINTR)
        code = errno;
    }
    // Network file systems tell of a full disk as late as here.
    if (fd >= 0 && ::close(fd) != 0 && code == 0 && errno != EINTR) code = errno;
    if (code != 0 && failure.empty()) {
      failure = detail::format("cannot write {} '{}': {}", kind, file.path.string(),
                               std::generic_category().message(code));
      if (const std::size_t left = file.writing.size() - file.written; left > 0) {
        failure += detail::format("; {} of {} bytes are not in it", left, file.writing.size());
      }
    }
    return file.written - before;
  }

  void work() {
    std::vector<File*> batch;
    std::unique_lock lock(mutex);
    while (true) {
      wake.wait(lock, [&] { return outstanding > 0 || stop; });
      if (outstanding == 0) return;
      wake.wait_for(lock, options.interval, [&] { return hurry || stop; });
      hurry = false;
      const bool last = stop;
      const std::uint64_t taken = appended;
      batch.clear();
      for (File& file : files) {
        if (file.written == file.writing.size()) {
          file.writing.clear();
          file.written = 0;
          file.writing.swap(file.pending);
        } else {  // an error's leftover goes first
          file.writing += file.pending;
          file.pending.clear();
        }
        if (!file.writing.empty()) batch.push_back(&file);
      }
      lock.unlock();
      std::size_t bytes = 0;
      std::string failure;
      for (File* file : batch) bytes += write(*file, failure);
      lock.lock();
      outstanding -= bytes;
      if (failure.empty()) flushed = taken;
      error = std::move(failure);
      progress.notify_all();
      if (last) return;
    }
  }

  void start() {
    // The program's signal handlers run in its own threads.
    sigset_t all, before;
    sigfillset(&all);
    ::pthread_sigmask(SIG_SETMASK, &all, &before);
    try {
      thread = std::thread([this] { work(); });
    } catch (...) {
      ::pthread_sigmask(SIG_SETMASK, &before, nullptr);
      throw;
    }
    ::pthread_sigmask(SIG_SETMASK, &before, nullptr);
  }

  void hurry_up() {
    hurry = true;
    wake.notify_one();
  }
  void throw_error() {
    if (error.empty()) return;
    const std::string message = std::exchange(error, {});
    fail("{}", message);
  }

  std::size_t add(const std::filesystem::path& path, std::string_view head) {
    File file{.path = path, .writing = std::string(head)};
    std::string failure;
    write(file, failure);
    if (!failure.empty()) fail("{}", failure);
    const std::lock_guard lock(mutex);
    files.push_back(std::move(file));
    return files.size() - 1;
  }

  void append(std::size_t file, std::string_view bytes) {
    std::unique_lock lock(mutex);
    if (!thread.joinable()) start();
    // One record may be larger than the limit: it waits for an empty buffer.
    const auto room = [&] { return outstanding == 0 || outstanding + bytes.size() <= options.max_bytes; };
    if (!room()) {
      hurry_up();
      progress.wait(lock, [&] { return room() || !error.empty(); });
      if (!room()) throw_error();
    }
    files[file].pending += bytes;
    ++appended;
    const bool first = outstanding == 0;
    outstanding += bytes.size();
    if (outstanding > options.max_bytes / 2)
      hurry_up();
    else if (first)
      wake.notify_one();
    throw_error();
  }

  void flush() {
    std::unique_lock lock(mutex);
    const std::uint64_t all = appended;
    if (flushed >= all) return;
    error.clear();  // of an earlier try
    hurry_up();
    progress.wait(lock, [&] { return flushed >= all || !error.empty(); });
    throw_error();
  }

  const std::string kind;
  const BackgroundWriterOptions options;
  const ::pid_t process;
  std::mutex
      mutex;  // of all below; the thread reads a file's `writing` and `written` without it, which are its own
  std::condition_variable wake, progress;
  std::deque<File> files;                   // whose elements stay where they are
  std::size_t outstanding = 0;              // bytes that are in no file yet
  std::uint64_t appended = 0, flushed = 0;  // calls of append(), and how many of them are in the files
  bool hurry = false, stop = false;
  std::string error;
  std::thread thread;
};

FULMEN_INLINE BackgroundWriter::BackgroundWriter(std::string kind, BackgroundWriterOptions options)
    : state_(std::make_unique<State>(std::move(kind), options)) {}
FULMEN_INLINE BackgroundWriter::BackgroundWriter(BackgroundWriter&&) noexcept = default;
FULMEN_INLINE BackgroundWriter& BackgroundWriter::operator=(BackgroundWriter&& other) noexcept {
  BackgroundWriter before(std::move(*this));  // ends here, with what it has to write
  state_ = std::move(other.state_);
  return *this;
}
FULMEN_INLINE BackgroundWriter::~BackgroundWriter() {
  // After fork() the thread is not there to be joined, and the bytes are the parent's to write.
  if (state_ && state_->process != ::getpid()) static_cast<void>(state_.release());
}
FULMEN_INLINE std::size_t BackgroundWriter::add(const std::filesystem::path& path, std::string_view head) {
  return state_->process == ::getpid() ? state_->add(path, head) : 0;
}
FULMEN_INLINE void BackgroundWriter::append(std::size_t file, std::string_view bytes) {
  if (state_->process == ::getpid()) state_->append(file, bytes);
}
FULMEN_INLINE void BackgroundWriter::flush() {
  if (state_->process == ::getpid()) state_->flush();
}

#endif

}  // namespace fulmen

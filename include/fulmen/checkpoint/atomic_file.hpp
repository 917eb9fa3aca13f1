// A file that appears whole or not at all: written aside in the same folder, flushed, then renamed into
// place.
#pragma once

#include <fulmen/compiled.hpp>

#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <string>
#include <utility>

#if FULMEN_BODIES
#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cerrno>
#include <stdexcept>
#include <system_error>
#endif

namespace fulmen::checkpoint {

namespace detail {

// A file descriptor that closes itself.
class Descriptor {
 public:
  Descriptor() = default;
  explicit Descriptor(int fd) : fd_(fd) {}
  Descriptor(Descriptor&& other) noexcept : fd_(std::exchange(other.fd_, -1)) {}
  Descriptor& operator=(Descriptor&& other) noexcept {
    std::swap(fd_, other.fd_);
    return *this;
  }
  ~Descriptor() { close(); }

  int get() const { return fd_; }
  explicit operator bool() const { return fd_ >= 0; }

  void close();

 private:
  int fd_ = -1;
};

// "No such file or directory" for ENOENT (strerror is not safe with threads).
std::string reason_of(int error);

// A name beside the target's that no file has.
std::filesystem::path temporary_name(const std::filesystem::path& target);

// Flushes the entries of a folder. 0, or an error's number.
int flush_folder(const std::filesystem::path& folder);

}  // namespace detail

/// Makes a folder and those above it, as far as they are not there.
/// Error: std::runtime_error "<owner>: cannot make the folder '<path>': <reason>".
void make_folder(const std::filesystem::path& folder, const std::string& owner = "");

/// Puts a link to `file` at `path`, in place of a file or link there, so that a reader finds the one or the other: a
/// hard link, or a symbolic one (relative to the folder it is in).
/// Result: whether it is there; where the file system has no such links, `path` is as it was.
bool replace_by_link(const std::filesystem::path& path, const std::filesystem::path& file, bool symbolic);

/// Writes a file so that a reader finds the previous file or the new one, never a part, whatever kills the
/// process, fills the disk or cuts the power in between.
///
///   checkpoint::AtomicFile file(path);
///   file.append(bytes, size);
///   file.commit();  // without it the destructor discards what has been written
///
/// The bytes go to a file without a name in the target's folder (Linux's O_TMPFILE), which a kill leaves no
/// trace of; where the file system has no such thing, to `.<name>.tmp-<pid>-<n>`. commit() flushes it to the
/// disk, renames it over the target and flushes the folder. A symbolic link at the target is replaced, not
/// followed.
///
/// Errors: std::runtime_error "cannot write <kind> '<path>': <reason>". The destructor never throws.
class AtomicFile {
 public:
  /// Starts the file. `kind` is what messages call it. The folder has to be there; what is at `target` may be
  /// nothing, a regular file or a link: renaming over a device such as /dev/null would destroy it. `unnamed`
  /// is there for the tests.
  explicit AtomicFile(std::filesystem::path target, std::string kind = "file", bool unnamed = true);

  AtomicFile(const AtomicFile&) = delete;
  AtomicFile& operator=(const AtomicFile&) = delete;
  ~AtomicFile();

  /// Appends `size` bytes.
  void append(const void* bytes, std::size_t size);

  /// Bytes appended so far.
  std::uint64_t size() const { return size_; }

  /// Flushes the file, gives it its name and flushes the folder. After an error the target is as it was, but
  /// for an error of the very last step: then it is the new file, which a power cut might still undo.
  void commit();

 private:
  [[noreturn]] void fail(const std::string& reason);
  void discard() noexcept;
  std::string unnamed_link() const;
  void open_unnamed();
  void open_named();
  // A link cannot replace a file, so that the file gets a temporary name for an instant, to be renamed.
  void link_unnamed();

  std::filesystem::path target_;
  std::string kind_;
  std::filesystem::path folder_;
  std::filesystem::path temporary_;  // empty while the file has no name
  detail::Descriptor file_;
  std::uint64_t size_ = 0;
};

#if FULMEN_BODIES
FULMEN_INLINE void detail::Descriptor::close() {
  if (fd_ >= 0) ::close(std::exchange(fd_, -1));
}

FULMEN_INLINE std::string detail::reason_of(int error) { return std::generic_category().message(error); }

FULMEN_INLINE std::filesystem::path detail::temporary_name(const std::filesystem::path& target) {
  static std::atomic<unsigned> count{0};
  // A long name is cut, so that the temporary's stays within the 255 bytes a file system allows.
  return target.parent_path() / ("." + target.filename().string().substr(0, 200) + ".tmp-" +
                                 std::to_string(::getpid()) + "-" + std::to_string(count++));
}

FULMEN_INLINE int detail::flush_folder(const std::filesystem::path& folder) {
  const Descriptor open(::open(folder.empty() ? "." : folder.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC));
  // Some file systems cannot flush a folder (EINVAL): nothing that could be done about it.
  return open && ::fsync(open.get()) != 0 && errno != EINVAL && errno != ENOTSUP ? errno : 0;
}

FULMEN_INLINE void make_folder(const std::filesystem::path& folder, const std::string& owner) {
  std::error_code error;
  std::filesystem::create_directories(folder, error);
  if (error) {
    throw std::runtime_error((owner.empty() ? "" : owner + ": ") + "cannot make the folder '" + folder.string() +
                             "': " + error.message());
  }
}

FULMEN_INLINE bool replace_by_link(const std::filesystem::path& path, const std::filesystem::path& file,
                                   bool symbolic) {
  const std::filesystem::path folder = path.parent_path(), temporary = detail::temporary_name(path);
  const int made = symbolic ? ::symlink(file.lexically_relative(folder).c_str(), temporary.c_str())
                            : ::link(file.c_str(), temporary.c_str());
  if (made != 0) return false;
  const bool done = ::rename(temporary.c_str(), path.c_str()) == 0;
  // Renaming does nothing where both are the same file already.
  ::unlink(temporary.c_str());
  return done && detail::flush_folder(folder) == 0;
}

FULMEN_INLINE AtomicFile::AtomicFile(std::filesystem::path target, std::string kind, bool unnamed)
    : target_(std::move(target)), kind_(std::move(kind)), folder_(target_.parent_path()) {
  if (folder_.empty()) folder_ = ".";
  if (!target_.has_filename()) fail("the path names no file");
  struct stat at_target {};
  if (::lstat(target_.c_str(), &at_target) == 0 && !S_ISREG(at_target.st_mode) &&
      !S_ISLNK(at_target.st_mode)) {
    fail(S_ISDIR(at_target.st_mode) ? "it is a folder" : "it is neither a regular file nor a link");
  }
  if (unnamed) open_unnamed();
  if (!file_) open_named();
}

FULMEN_INLINE AtomicFile::~AtomicFile() { discard(); }

FULMEN_INLINE void AtomicFile::append(const void* bytes, std::size_t size) {
  const auto* next = static_cast<const char*>(bytes);
  while (size > 0) {
    // Linux writes at most 2^31 - 4096 bytes a call.
    const ssize_t written = ::write(file_.get(), next, std::min(size, std::size_t{1} << 30));
    if (written < 0 && errno == EINTR) continue;
    if (written < 0) fail(detail::reason_of(errno));
    next += written;
    size -= static_cast<std::size_t>(written);
    size_ += static_cast<std::uint64_t>(written);
  }
}

FULMEN_INLINE void AtomicFile::commit() {
  if (::fsync(file_.get()) != 0) fail(detail::reason_of(errno));
  if (temporary_.empty()) link_unnamed();
  file_.close();
  if (::rename(temporary_.c_str(), target_.c_str()) != 0) fail(detail::reason_of(errno));
  temporary_.clear();
  if (const int error = detail::flush_folder(folder_); error != 0) fail(detail::reason_of(error));
}

FULMEN_INLINE void AtomicFile::fail(const std::string& reason) {
  discard();
  throw std::runtime_error("cannot write " + kind_ + " '" + target_.string() + "': " + reason);
}

FULMEN_INLINE void AtomicFile::discard() noexcept {
  file_.close();
  if (!temporary_.empty()) ::unlink(temporary_.c_str());
  temporary_.clear();
}

FULMEN_INLINE std::string AtomicFile::unnamed_link() const {
  return "/proc/self/fd/" + std::to_string(file_.get());
}

FULMEN_INLINE void AtomicFile::open_unnamed() {
#ifdef O_TMPFILE
  file_ = detail::Descriptor(::open(folder_.c_str(), O_TMPFILE | O_WRONLY | O_CLOEXEC, 0666));
  // It gets its name through /proc, which a container may lack: see before writing gigabytes.
  if (file_ && ::access(unnamed_link().c_str(), F_OK) != 0) file_.close();
#endif
}

FULMEN_INLINE void AtomicFile::open_named() {
  do {
    temporary_ = detail::temporary_name(target_);
    file_ = detail::Descriptor(::open(temporary_.c_str(), O_CREAT | O_EXCL | O_WRONLY | O_CLOEXEC, 0666));
  } while (!file_ && errno == EEXIST);  // another host's process of the same id, on a shared file system
  if (!file_) {
    const int error = errno;
    temporary_.clear();
    fail("its folder '" + folder_.string() + "': " + detail::reason_of(error));
  }
}

FULMEN_INLINE void AtomicFile::link_unnamed() {
  const std::string link = unnamed_link();
  do {
    temporary_ = detail::temporary_name(target_);
    if (::linkat(AT_FDCWD, link.c_str(), AT_FDCWD, temporary_.c_str(), AT_SYMLINK_FOLLOW) == 0) return;
  } while (errno == EEXIST);
  const int error = errno;
  temporary_.clear();
  fail(detail::reason_of(error));
}
#endif

}  // namespace fulmen::checkpoint

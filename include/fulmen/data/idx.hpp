// Reads IDX files, the format of MNIST and its kin: plain or gzip, every element type, any rank.
//
// Format: http://yann.lecun.com/exdb/mnist. Two zero bytes, a byte for the element type, a byte for the rank,
// then each dimension as a big-endian 32-bit number, then the elements, big-endian, the last dimension
// fastest.
#pragma once

#include <fulmen/compiled.hpp>

#include <ATen/core/Tensor.h>

#include <filesystem>
#include <string_view>

// 1: gzip files are read through zlib, and the program links to it. CMake sets it where it finds zlib; one
// program must be built with one value throughout.
#ifndef FULMEN_WITH_ZLIB
#define FULMEN_WITH_ZLIB 0
#endif

#if FULMEN_BODIES
#include <ATen/ops/empty.h>

#include <algorithm>
#include <array>
#include <bit>
#include <cctype>
#include <cerrno>
#include <cstdint>
#include <cstring>
#include <fstream>
#include <limits>
#include <memory>
#include <stdexcept>
#include <string>
#include <system_error>
#include <utility>
#include <vector>

#if FULMEN_WITH_ZLIB
#include <zlib.h>
#endif
#endif

namespace fulmen {

// The array in the IDX file `file`, on the CPU, contiguous, with the file's shape and element type: MNIST's
// images are uint8 of shape N x 28 x 28, its labels uint8 of shape N. Whether the file is gzip is seen in its
// first bytes, not in its name.
//
// Throws std::runtime_error, one line that names the file, what was found and what was expected, when the
// file is missing, a directory, empty, of another format, of an unknown element type, too short, too long,
// corrupt, or when its dimensions cannot be those of any array. Memory is taken only for what the file holds.
at::Tensor read_idx(const std::filesystem::path& file);

// The IDX file in `directory` that is called `stem`: with `-idx` or `.idx`, with or without `.gz`, the plain
// file before the gzip one. `stem` is the whole name (`train-images-idx3-ubyte`, `train-images.idx3-ubyte`)
// or what stands before its rank (`train-images`).
//
// Throws std::runtime_error, which lists the names looked for, when there is no such file, and when a short
// stem fits files of different ranks or types.
std::filesystem::path find_idx(const std::filesystem::path& directory, std::string_view stem);

#if FULMEN_BODIES
namespace detail::idx {

struct Element {
  unsigned char code;
  at::ScalarType dtype;
  std::int64_t size;  // bytes
  std::string_view name;
};

inline constexpr std::array<Element, 6> kElements{{{0x08, at::kByte, 1, "uint8"},
                                                   {0x09, at::kChar, 1, "int8"},
                                                   {0x0B, at::kShort, 2, "int16"},
                                                   {0x0C, at::kInt, 4, "int32"},
                                                   {0x0D, at::kFloat, 4, "float32"},
                                                   {0x0E, at::kDouble, 8, "float64"}}};

[[noreturn]] inline void fail(const std::filesystem::path& file, const std::string& what) {
  throw std::runtime_error("fulmen::read_idx: '" + file.string() + "': " + what);
}

inline std::string hex(const unsigned char* bytes, std::size_t count) {
  constexpr std::string_view digits = "0123456789abcdef";
  std::string text;
  for (std::size_t i = 0; i < count; ++i) {
    if (i != 0) text += ' ';
    text += digits[bytes[i] >> 4];
    text += digits[bytes[i] & 15];
  }
  return text;
}

inline std::string describe(const Element& element, const std::vector<std::int64_t>& shape) {
  std::string text{element.name};
  text += " [";
  for (std::size_t i = 0; i < shape.size(); ++i) text += (i == 0 ? "" : ", ") + std::to_string(shape[i]);
  return text + "]";
}

// A file's content from its beginning to its end: as it lies, or inflated where the file is gzip.
class Source {
 public:
  explicit Source(const std::filesystem::path& file) : file_{file} {
    std::error_code error;
    const auto status = std::filesystem::status(file, error);
    if (status.type() == std::filesystem::file_type::not_found)
      fail(file, "no such file, expected an IDX file");
    if (std::filesystem::is_directory(status)) fail(file, "is a directory, expected an IDX file");
    if (!std::filesystem::is_regular_file(status)) fail(file, "is not a regular file, expected an IDX file");
    left_ = std::filesystem::file_size(file, error);
    if (error) fail(file, "its size cannot be found: " + error.message());
    in_.open(file, std::ios::binary);
    if (!in_) fail(file, "cannot be opened for reading: " + std::generic_category().message(errno));

    std::array<char, 2> magic{};
    in_.read(magic.data(), magic.size());
    gzip_ = in_.gcount() == 2 && magic[0] == '\x1f' && magic[1] == '\x8b';
    in_.clear();
    in_.seekg(0);
    if (!gzip_) return;
#if FULMEN_WITH_ZLIB
    buffer_ = std::make_unique_for_overwrite<unsigned char[]>(kBuffer);
    constexpr int gzip_only = 15 + 16;  // the largest window; 16: a gzip header, not a zlib one
    if (inflateInit2(&stream_, gzip_only) != Z_OK) fail(file, "zlib cannot start: out of memory");
#else
    fail(file,
         "is gzip, and this program was built without zlib: gunzip the file, or build with zlib "
         "(FULMEN_WITH_ZLIB=1)");
#endif
  }

  Source(const Source&) = delete;
  Source& operator=(const Source&) = delete;

#if FULMEN_WITH_ZLIB
  ~Source() {
    if (gzip_) inflateEnd(&stream_);
  }
#endif

  bool gzip() const { return gzip_; }

  // How much of a plain file is still unread; of a gzip file nothing trustworthy is known before it is
  // inflated.
  std::uint64_t left() const { return left_; }

  // Fills `out` and gives the number of bytes written: fewer than `count` at the end of the content only.
  std::size_t read(char* out, std::size_t count) {
    return gzip_ ? read_gzip(out, count) : read_plain(out, count);
  }

 private:
  std::size_t read_plain(char* out, std::size_t count) {
    in_.read(out, static_cast<std::streamsize>(count));
    const auto got = static_cast<std::size_t>(in_.gcount());
    left_ -= std::min<std::uint64_t>(left_, got);
    return got;
  }

#if FULMEN_WITH_ZLIB
  std::size_t read_gzip(char* out, std::size_t count) {
    constexpr std::size_t most = std::numeric_limits<uInt>::max();
    std::size_t done = 0;
    while (done < count && !ended_) {
      refill();
      const auto room = static_cast<uInt>(std::min(count - done, most));
      stream_.next_out = reinterpret_cast<unsigned char*>(out + done);
      stream_.avail_out = room;
      const int code = inflate(&stream_, Z_NO_FLUSH);
      done += room - stream_.avail_out;
      inflated_ += room - stream_.avail_out;
      if (code == Z_STREAM_END) {
        next_member();
      } else if (code == Z_BUF_ERROR) {  // no progress although there was room: the input has run out
        fail(file_, "truncated gzip stream: the file ends after " + std::to_string(inflated_) +
                        " inflated bytes, expected the stream's end and its CRC");
      } else if (code != Z_OK) {
        fail(file_, "corrupt gzip stream: " + std::string(stream_.msg ? stream_.msg : zError(code)) +
                        " after " + std::to_string(inflated_) + " inflated bytes");
      }
    }
    return done;
  }

  void refill() {
    if (stream_.avail_in != 0) return;
    stream_.next_in = buffer_.get();
    stream_.avail_in = static_cast<uInt>(read_plain(reinterpret_cast<char*>(buffer_.get()), kBuffer));
  }

  // A gzip file may be several, one after the other; their contents are read as one.
  void next_member() {
    refill();
    ended_ = stream_.avail_in == 0;
    if (ended_) return;
    if (*stream_.next_in != 0x1f) {
      fail(file_, "trailing bytes after the gzip stream: found " + hex(stream_.next_in, 1) +
                      ", expected the end of the file");
    }
    inflateReset(&stream_);
  }

  static constexpr std::size_t kBuffer = std::size_t{1} << 18;
  std::unique_ptr<unsigned char[]> buffer_;
  z_stream stream_{};
  std::uint64_t inflated_ = 0;
  bool ended_ = false;
#else
  std::size_t read_gzip(char*, std::size_t) { return 0; }  // never reached: the constructor refused the file
#endif

  const std::filesystem::path& file_;
  std::ifstream in_;
  std::uint64_t left_ = 0;
  bool gzip_ = false;
};

// Reads `count` bytes of which nobody has yet seen that they are there, in pieces: what a lying header makes
// us allocate stays in proportion to what the file holds.
inline std::vector<std::pair<std::unique_ptr<char[]>, std::size_t>> read_in_pieces(Source& source,
                                                                                   std::uint64_t count) {
  constexpr std::uint64_t smallest = std::uint64_t{1} << 18, largest = std::uint64_t{1} << 26;
  std::vector<std::pair<std::unique_ptr<char[]>, std::size_t>> pieces;
  for (std::uint64_t size = smallest; count != 0; size = std::min(2 * size, largest)) {
    const auto wanted = static_cast<std::size_t>(std::min(size, count));
    auto piece = std::make_unique_for_overwrite<char[]>(wanted);
    const std::size_t got = source.read(piece.get(), wanted);
    pieces.emplace_back(std::move(piece), got);
    if (got < wanted) break;
    count -= got;
  }
  return pieces;
}

// `name` ends in `idx<rank>-<type>`, with or without `.gz`, after `stem` and a dash or a dot.
inline bool is_spelling(std::string_view name, std::string_view stem) {
  if (!name.starts_with(stem)) return false;
  name.remove_prefix(stem.size());
  if (!name.starts_with("-idx") && !name.starts_with(".idx")) return false;
  name.remove_prefix(4);
  std::size_t digits = 0;
  while (digits < name.size() && std::isdigit(static_cast<unsigned char>(name[digits]))) ++digits;
  if (digits == 0) return false;
  name.remove_prefix(digits);
  if (name.ends_with(".gz")) name.remove_suffix(3);
  constexpr std::array<std::string_view, 6> types{"-ubyte", "-byte", "-short", "-int", "-float", "-double"};
  return std::find(types.begin(), types.end(), name) != types.end();
}

}  // namespace detail::idx

FULMEN_INLINE at::Tensor read_idx(const std::filesystem::path& file) {
  namespace idx = detail::idx;
  idx::Source source{file};

  std::array<unsigned char, 4> start{};
  const std::size_t got = source.read(reinterpret_cast<char*>(start.data()), start.size());
  if (got == 0) {
    idx::fail(file, std::string(source.gzip() ? "its gzip content is" : "is") +
                        " empty (0 bytes), expected an IDX header of at least 4 bytes");
  }
  if (got < start.size()) {
    idx::fail(file, "truncated header: found " + std::to_string(got) + " bytes, expected at least 4");
  }
  if (start[0] != 0 || start[1] != 0) {
    idx::fail(file, "wrong magic number: found " + idx::hex(start.data(), 4) +
                        ", expected 00 00, the element type (08 to 0e) and the rank");
  }
  const auto element = std::find_if(idx::kElements.begin(), idx::kElements.end(),
                                    [&](const idx::Element& known) { return known.code == start[2]; });
  if (element == idx::kElements.end()) {
    std::string known;
    for (const auto& each : idx::kElements) {
      known += (known.empty() ? "" : ", ") + idx::hex(&each.code, 1) + " (" + std::string(each.name) + ")";
    }
    idx::fail(file, "unknown element type: found " + idx::hex(&start[2], 1) + ", expected one of " + known);
  }

  const std::size_t rank = start[3];
  std::array<unsigned char, 4 * 255> dimensions;
  const std::size_t dimension_bytes = source.read(reinterpret_cast<char*>(dimensions.data()), 4 * rank);
  if (dimension_bytes < 4 * rank) {
    idx::fail(file, "truncated header: found " + std::to_string(4 + dimension_bytes) + " bytes, expected " +
                        std::to_string(4 + 4 * rank) + " for rank " + std::to_string(rank));
  }
  std::vector<std::int64_t> shape(rank);
  for (std::size_t i = 0; i < rank; ++i) {
    const unsigned char* at = &dimensions[4 * i];
    shape[i] = std::int64_t{at[0]} << 24 | std::int64_t{at[1]} << 16 | std::int64_t{at[2]} << 8 | at[3];
  }

  // A dimension of zero must not hide others whose strides overflow: `span` counts it as one.
  constexpr std::int64_t most = std::numeric_limits<std::int64_t>::max();
  std::int64_t bytes = element->size, span = element->size;
  for (const std::int64_t size : shape) {
    if (span > most / std::max<std::int64_t>(size, 1)) {
      idx::fail(file, "absurd dimensions: found " + idx::describe(*element, shape) +
                          ", expected an array of less than 2^63 bytes");
    }
    span *= std::max<std::int64_t>(size, 1);
    bytes *= size;
  }

  const auto body_error = [&](const char* what, std::uint64_t found, const char* more) {
    idx::fail(file, std::string(what) + ": found " + std::to_string(found) + more +
                        " bytes after the header, expected " + std::to_string(bytes) + " for " +
                        idx::describe(*element, shape));
  };
  const auto expected = static_cast<std::uint64_t>(bytes);
  const auto options = at::TensorOptions().dtype(element->dtype).device(at::kCPU);
  at::Tensor array;
  if (source.gzip()) {
    auto pieces = idx::read_in_pieces(source, expected);
    std::uint64_t found = 0;
    for (const auto& [data, size] : pieces) found += size;
    if (found < expected) body_error("truncated body", found, "");
    // Read even when nothing is expected: only at the end of the stream does zlib compare the CRC.
    char beyond;
    if (source.read(&beyond, 1) != 0) body_error("trailing bytes", found + 1, " or more");
    array = at::empty(shape, options);
    char* out = static_cast<char*>(array.mutable_data_ptr());
    for (auto& [data, size] : pieces) {
      std::memcpy(out, data.get(), size);
      out += size;
      data.reset();
    }
  } else {
    const std::uint64_t found = source.left();
    if (found < expected) body_error("truncated body", found, "");
    if (found > expected) body_error("trailing bytes", found, "");
    array = at::empty(shape, options);
    const std::size_t read =
        expected == 0 ? 0 : source.read(static_cast<char*>(array.mutable_data_ptr()), expected);
    if (read < expected) body_error("truncated body", read, "");  // it shrank while it was read
  }

  if (std::endian::native == std::endian::little && element->size > 1) {
    char* data = static_cast<char*>(array.mutable_data_ptr());
    for (std::int64_t i = 0; i < bytes; i += element->size) std::reverse(data + i, data + i + element->size);
  }
  return array;
}

FULMEN_INLINE std::filesystem::path find_idx(const std::filesystem::path& directory, std::string_view stem) {
  namespace fs = std::filesystem;
  const auto fail = [&](const std::string& what) {
    throw std::runtime_error("fulmen::find_idx: '" + directory.string() + "': " + what);
  };
  std::error_code error;
  if (!fs::is_directory(directory, error)) {
    fail(fs::exists(directory, error) ? "is not a directory" : "no such directory");
  }

  std::vector<std::string> names;
  const std::size_t mark = stem.rfind("idx");
  const bool whole = mark != std::string_view::npos && mark != 0 &&
                     (stem[mark - 1] == '-' || stem[mark - 1] == '.') &&
                     detail::idx::is_spelling(stem, stem.substr(0, mark - 1));
  if (whole) {
    if (stem.ends_with(".gz")) stem.remove_suffix(3);
    std::string dash{stem}, dot{stem};
    dash[mark - 1] = '-';
    dot[mark - 1] = '.';
    names = {dash, dot, dash + ".gz", dot + ".gz"};
  } else {
    for (const auto& entry : fs::directory_iterator(directory)) {
      std::string name = entry.path().filename().string();
      if (detail::idx::is_spelling(name, stem)) names.push_back(std::move(name));
    }
    // Plain before gzip, and a dash ('-' < '.') before a dot.
    std::sort(names.begin(), names.end(), [](const std::string& a, const std::string& b) {
      return std::pair{a.ends_with(".gz"), a} < std::pair{b.ends_with(".gz"), b};
    });
  }

  std::string found, found_kind;
  for (const std::string& name : names) {
    if (!fs::is_regular_file(directory / name, error)) continue;
    std::string kind = name.substr(name.rfind("idx"));
    if (kind.ends_with(".gz")) kind.resize(kind.size() - 3);
    if (found.empty()) {
      found = name;
      found_kind = kind;
    } else if (kind != found_kind) {
      fail("'" + std::string(stem) + "' fits both " + found + " and " + name + ": give the whole name");
    }
  }
  if (!found.empty()) return directory / found;

  if (!whole) {
    const std::string text{stem};
    names = {text + "-idx<rank>-<type>", text + ".idx<rank>-<type>", "either with .gz"};
  }
  std::string list;
  for (const std::string& name : names) list += (list.empty() ? "" : ", ") + name;
  fail("no such IDX file, looked for " + list);
  return {};
}
#endif

}  // namespace fulmen

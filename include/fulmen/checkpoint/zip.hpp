// The subset of the zip format that PyTorch's checkpoints use: stored records, aligned, with CRCs and zip64.
#pragma once

#include <fulmen/checkpoint/atomic_file.hpp>
#include <fulmen/checkpoint/crc32.hpp>

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <bit>
#include <cerrno>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <filesystem>
#include <stdexcept>
#include <string>
#include <string_view>
#include <type_traits>
#include <unordered_map>
#include <utility>
#include <vector>

namespace fulmen::checkpoint::detail {

static_assert(std::endian::native == std::endian::little,
              "checkpoints are read and written on little-endian hosts only");

inline constexpr std::uint32_t kZipLocalHeader = 0x04034b50;
inline constexpr std::uint32_t kZipDescriptor = 0x08074b50;
inline constexpr std::uint32_t kZipCentralHeader = 0x02014b50;
inline constexpr std::uint32_t kZip64End = 0x06064b50;
inline constexpr std::uint32_t kZip64Locator = 0x07064b50;
inline constexpr std::uint32_t kZipEnd = 0x06054b50;
inline constexpr std::uint32_t kZipMax32 =
    0xFFFFFFFF;  // a field with this value has its value in a zip64 field

// What the file is read and written by: a piece of this size is still in the cache when its CRC has been
// computed.
inline constexpr std::size_t kZipPiece = std::size_t{1} << 18;

// Writes a zip file with the layout of torch.save, to the byte: each record's data begins at a multiple of 64
// bytes (so that Python can map it), the CRC and size follow the data, names are `<archive>/<record>`.
// Python's torch.load can then compute where records are (config.load.calculate_storage_offsets).
// Source: caffe2/serialize/inline_container.cc and miniz.c of PyTorch.
class ZipWriter {
 public:
  static constexpr std::uint64_t kAlignment = 64;

  // Errors of `file` pass through. `archive` is the folder that all records are in.
  ZipWriter(AtomicFile& file, std::string archive) : file_(file), archive_(std::move(archive)) {}

  void add(std::string_view record, const void* data, std::uint64_t size) {
    const std::string name = archive_ + "/" + std::string(record);
    const std::uint64_t begin = file_.size();
    const bool zip64 = size >= kZipMax32 || begin >= kZipMax32;
    // Bit 11: the name is UTF-8. Bit 3: CRC and sizes follow the data.
    const std::uint16_t flags = size > 0 ? 0x0808 : 0x0800;

    std::string extra;
    if (zip64) append_zip64(extra, size, begin);
    const std::uint64_t unpadded = begin + 30 + name.size() + extra.size() + 4;
    const auto padding = static_cast<std::uint16_t>((kAlignment - unpadded % kAlignment) % kAlignment);
    extra += "FB";
    put<std::uint16_t>(extra, padding);
    extra.append(padding, 'Z');

    std::string header;
    put<std::uint32_t>(header, kZipLocalHeader);
    put<std::uint16_t>(header, 0);  // version needed to extract
    put<std::uint16_t>(header, flags);
    put<std::uint16_t>(header, 0);  // stored
    put<std::uint16_t>(header, 0);  // time
    put<std::uint16_t>(header, kFirstOfJanuary1980);
    put<std::uint32_t>(header, 0);  // CRC and sizes: in the descriptor
    put<std::uint32_t>(header, 0);
    put<std::uint32_t>(header, 0);
    put<std::uint16_t>(header, static_cast<std::uint16_t>(name.size()));
    put<std::uint16_t>(header, static_cast<std::uint16_t>(extra.size()));
    header += name;
    header += extra;
    file_.append(header.data(), header.size());

    std::uint32_t crc = 0;
    const auto* bytes = static_cast<const char*>(data);
    for (std::uint64_t done = 0; done < size;) {
      const auto piece = static_cast<std::size_t>(std::min<std::uint64_t>(kZipPiece, size - done));
      crc = crc32(crc, bytes + done, piece);
      file_.append(bytes + done, piece);
      done += piece;
    }

    if (size > 0) {
      std::string descriptor;
      put<std::uint32_t>(descriptor, kZipDescriptor);
      put<std::uint32_t>(descriptor, crc);
      for (int i = 0; i < 2; ++i) {
        if (zip64) {
          put<std::uint64_t>(descriptor, size);
        } else {
          put<std::uint32_t>(descriptor, static_cast<std::uint32_t>(size));
        }
      }
      file_.append(descriptor.data(), descriptor.size());
    }

    std::string central_extra;
    if (zip64) append_zip64(central_extra, size, begin);
    put<std::uint32_t>(directory_, kZipCentralHeader);
    put<std::uint16_t>(directory_, 0);  // made by
    put<std::uint16_t>(directory_, 0);  // version needed to extract
    put<std::uint16_t>(directory_, flags);
    put<std::uint16_t>(directory_, 0);  // stored
    put<std::uint16_t>(directory_, 0);  // time
    put<std::uint16_t>(directory_, kFirstOfJanuary1980);
    put<std::uint32_t>(directory_, crc);
    put<std::uint32_t>(directory_, static_cast<std::uint32_t>(std::min<std::uint64_t>(size, kZipMax32)));
    put<std::uint32_t>(directory_, static_cast<std::uint32_t>(std::min<std::uint64_t>(size, kZipMax32)));
    put<std::uint16_t>(directory_, static_cast<std::uint16_t>(name.size()));
    put<std::uint16_t>(directory_, static_cast<std::uint16_t>(central_extra.size()));
    put<std::uint16_t>(directory_, 0);  // comment
    put<std::uint16_t>(directory_, 0);  // disk
    put<std::uint16_t>(directory_, 0);  // internal attributes
    put<std::uint32_t>(directory_, 0);  // external attributes
    put<std::uint32_t>(directory_, static_cast<std::uint32_t>(std::min<std::uint64_t>(begin, kZipMax32)));
    directory_ += name;
    directory_ += central_extra;
    ++count_;
  }

  void add(std::string_view record, std::string_view text) { add(record, text.data(), text.size()); }

  // Writes the directory. The zip64 records are written always, as PyTorch does.
  void finish() {
    const std::uint64_t begin = file_.size();
    file_.append(directory_.data(), directory_.size());
    const std::uint64_t end = file_.size();
    std::string tail;
    put<std::uint32_t>(tail, kZip64End);
    put<std::uint64_t>(tail, 44);  // size of the rest of this record
    put<std::uint16_t>(tail, 0x031E);
    put<std::uint16_t>(tail, 45);
    put<std::uint32_t>(tail, 0);
    put<std::uint32_t>(tail, 0);
    put<std::uint64_t>(tail, count_);
    put<std::uint64_t>(tail, count_);
    put<std::uint64_t>(tail, end - begin);
    put<std::uint64_t>(tail, begin);
    put<std::uint32_t>(tail, kZip64Locator);
    put<std::uint32_t>(tail, 0);
    put<std::uint64_t>(tail, end);
    put<std::uint32_t>(tail, 1);
    put<std::uint32_t>(tail, kZipEnd);
    put<std::uint16_t>(tail, 0);
    put<std::uint16_t>(tail, 0);
    put<std::uint16_t>(tail, static_cast<std::uint16_t>(std::min<std::uint64_t>(count_, 0xFFFF)));
    put<std::uint16_t>(tail, static_cast<std::uint16_t>(std::min<std::uint64_t>(count_, 0xFFFF)));
    put<std::uint32_t>(tail, static_cast<std::uint32_t>(std::min<std::uint64_t>(end - begin, kZipMax32)));
    put<std::uint32_t>(tail, static_cast<std::uint32_t>(std::min<std::uint64_t>(begin, kZipMax32)));
    put<std::uint16_t>(tail, 0);
    file_.append(tail.data(), tail.size());
  }

 private:
  // A date that every zip tool takes (PyTorch writes month 0 of 1980); fixed, so that equal contents are
  // equal files.
  static constexpr std::uint16_t kFirstOfJanuary1980 = 0x0021;

  template <class Int>
  static void put(std::string& out, std::type_identity_t<Int> value) {
    out.append(reinterpret_cast<const char*>(&value), sizeof(value));
  }

  static void append_zip64(std::string& extra, std::uint64_t size, std::uint64_t begin) {
    put<std::uint16_t>(extra, 1);
    put<std::uint16_t>(
        extra, static_cast<std::uint16_t>((size >= kZipMax32 ? 16 : 0) + (begin >= kZipMax32 ? 8 : 0)));
    if (size >= kZipMax32) {
      put<std::uint64_t>(extra, size);
      put<std::uint64_t>(extra, size);
    }
    if (begin >= kZipMax32) put<std::uint64_t>(extra, begin);
  }

  AtomicFile& file_;
  std::string archive_;
  std::string directory_;
  std::uint64_t count_ = 0;
};

// A regular file open for reading. Errors: std::runtime_error with the reason alone; the caller names the
// file.
class InputFile {
 public:
  explicit InputFile(const std::filesystem::path& path)
      : file_(::open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK)) {
    if (!file_) throw std::runtime_error(reason_of(errno));
    struct stat status {};
    if (::fstat(file_.get(), &status) != 0) throw std::runtime_error(reason_of(errno));
    if (S_ISDIR(status.st_mode)) throw std::runtime_error("it is a folder");
    if (!S_ISREG(status.st_mode)) throw std::runtime_error("it is not a regular file");
    size_ = static_cast<std::uint64_t>(status.st_size);
  }

  std::uint64_t size() const { return size_; }

  void read(std::uint64_t offset, void* into, std::size_t size) const {
    auto* next = static_cast<char*>(into);
    while (size > 0) {
      const ssize_t got =
          ::pread(file_.get(), next, std::min(size, std::size_t{1} << 30), static_cast<off_t>(offset));
      if (got < 0 && errno == EINTR) continue;
      if (got < 0) throw std::runtime_error(reason_of(errno));
      if (got == 0) throw std::runtime_error("the file became shorter while it was read");
      next += got;
      offset += static_cast<std::uint64_t>(got);
      size -= static_cast<std::size_t>(got);
    }
  }

  std::string read(std::uint64_t offset, std::size_t size) const {
    std::string bytes(size, '\0');
    read(offset, bytes.data(), size);
    return bytes;
  }

 private:
  Descriptor file_;
  std::uint64_t size_ = 0;
};

// Reads such a file, trusting nothing in it: every offset and size is checked against the file, records may
// not overlap (so that what is read cannot be larger than the file), CRCs are verified. Errors:
// std::runtime_error that says what is wrong, without the file's name.
class ZipReader {
 public:
  struct Record {
    std::uint64_t begin = 0;  // of its local header
    std::uint64_t size = 0;
    std::uint32_t crc = 0;
    bool encrypted = false;
    bool compressed = false;
  };

  explicit ZipReader(const InputFile& file) : file_(file) { read_directory(); }

  // The folder that all records are in (torch.save calls it as the file was called when it was written).
  const std::string& archive() const { return archive_; }

  bool contains(const std::string& record) const { return records_.contains(record); }

  bool contains_suffix(std::string_view suffix) const {
    return std::any_of(records_.begin(), records_.end(),
                       [&](const auto& r) { return r.first.ends_with(suffix); });
  }

  std::uint64_t size_of(const std::string& record) const { return find(record).size; }

  // Reads the whole record into `into`, which holds size_of(record) bytes.
  void read(const std::string& record, void* into) const {
    const Record& entry = find(record);
    const std::uint64_t begin = data_of(record, entry);
    auto* bytes = static_cast<char*>(into);
    std::uint32_t crc = 0;
    for (std::uint64_t done = 0; done < entry.size;) {
      const auto piece = static_cast<std::size_t>(std::min<std::uint64_t>(kZipPiece, entry.size - done));
      file_.read(begin + done, bytes + done, piece);
      if (entry.crc != 0) crc = crc32(crc, bytes + done, piece);
      done += piece;
    }
    // Python leaves CRCs 0 after torch.serialization.set_crc32_options(False): nothing to compare with.
    if (entry.crc != 0 && crc != entry.crc) {
      throw std::runtime_error("record '" + record +
                               "' is damaged (its CRC-32 is not the one the file states)");
    }
  }

  std::string read(const std::string& record) const {
    std::string bytes(static_cast<std::size_t>(find(record).size), '\0');
    read(record, bytes.data());
    return bytes;
  }

 private:
  template <class Int>
  static Int get(std::string_view bytes, std::size_t offset) {
    if (offset > bytes.size() || bytes.size() - offset < sizeof(Int)) {
      throw std::runtime_error("its zip directory is damaged");
    }
    Int value{};
    std::memcpy(&value, bytes.data() + offset, sizeof(Int));
    return value;
  }

  static void require(bool condition) {
    if (!condition) throw std::runtime_error("its zip directory is damaged");
  }

  const Record& find(const std::string& record) const {
    const auto found = records_.find(record);
    if (found == records_.end()) throw std::runtime_error("record '" + record + "' is missing");
    if (found->second.encrypted) throw std::runtime_error("record '" + record + "' is encrypted");
    if (found->second.compressed) {
      throw std::runtime_error("record '" + record +
                               "' is compressed, expected it stored as it is, as torch.save does");
    }
    return found->second;
  }

  // Where the record's data begins. The directory has not said: only the local header knows its own length.
  std::uint64_t data_of(const std::string& record, const Record& entry) const {
    const std::string header = file_.read(entry.begin, 30);
    const auto name_size = get<std::uint16_t>(header, 26);
    const std::uint64_t begin = entry.begin + 30 + name_size + get<std::uint16_t>(header, 28);
    const std::string name = archive_.empty() ? record : archive_ + "/" + record;
    if (get<std::uint32_t>(header, 0) != kZipLocalHeader || name_size != name.size() ||
        begin > directory_begin_ || entry.size > directory_begin_ - begin ||
        file_.read(entry.begin + 30, name_size) != name) {
      throw std::runtime_error("record '" + record +
                               "' is damaged (its header does not match the zip directory)");
    }
    return begin;
  }

  void read_directory() {
    // The end record is the last 22 bytes; a zip comment may follow it, of up to 65535 bytes.
    const auto tail_size = static_cast<std::size_t>(std::min<std::uint64_t>(file_.size(), 22 + 0xFFFF));
    const std::uint64_t tail_begin = file_.size() - tail_size;
    const std::string tail = file_.read(tail_begin, tail_size);
    std::size_t end = std::string::npos;
    for (std::size_t at = tail_size < 22 ? std::string::npos : tail_size - 22; at != std::string::npos;
         at = at == 0 ? std::string::npos : at - 1) {
      if (get<std::uint32_t>(tail, at) == kZipEnd &&
          at + 22 + get<std::uint16_t>(tail, at + 20) == tail_size) {
        end = at;
        break;
      }
    }
    if (end == std::string::npos) {
      throw std::runtime_error(
          "the zip directory at its end is missing: the file is truncated or was still being written");
    }

    std::uint64_t count = get<std::uint16_t>(tail, end + 10);
    std::uint64_t size = get<std::uint32_t>(tail, end + 12);
    directory_begin_ = get<std::uint32_t>(tail, end + 16);
    std::uint64_t limit = tail_begin + end;  // the directory ends here at the latest
    if (end >= 20 && get<std::uint32_t>(tail, end - 20) == kZip64Locator) {
      limit = get<std::uint64_t>(tail, end - 12);
      require(limit <= file_.size() && file_.size() - limit >= 56);
      const std::string end64 = file_.read(limit, 56);
      require(get<std::uint32_t>(end64, 0) == kZip64End);
      count = get<std::uint64_t>(end64, 32);
      size = get<std::uint64_t>(end64, 40);
      directory_begin_ = get<std::uint64_t>(end64, 48);
    }
    require(directory_begin_ <= limit && size <= limit - directory_begin_ && count <= size / 46);

    const std::string directory = file_.read(directory_begin_, static_cast<std::size_t>(size));
    std::size_t at = 0;
    std::uint64_t total = 0;
    std::vector<std::pair<std::string, Record>> records;
    records.reserve(static_cast<std::size_t>(count));
    for (std::uint64_t i = 0; i < count; ++i) {
      require(get<std::uint32_t>(directory, at) == kZipCentralHeader);
      const auto flags = get<std::uint16_t>(directory, at + 8);
      const auto method = get<std::uint16_t>(directory, at + 10);
      Record entry;
      entry.crc = get<std::uint32_t>(directory, at + 16);
      std::uint64_t packed = get<std::uint32_t>(directory, at + 20);
      entry.size = get<std::uint32_t>(directory, at + 24);
      const auto name_size = get<std::uint16_t>(directory, at + 28);
      const auto extra_size = get<std::uint16_t>(directory, at + 30);
      const auto comment_size = get<std::uint16_t>(directory, at + 32);
      entry.begin = get<std::uint32_t>(directory, at + 42);
      at += 46;
      require(directory.size() - at >= std::size_t{name_size} + extra_size + comment_size);
      std::string name = directory.substr(at, name_size);
      read_zip64(std::string_view(directory).substr(at + name_size, extra_size), entry.size, packed,
                 entry.begin);
      at += std::size_t{name_size} + extra_size + comment_size;

      // Told only when the record is asked for: other zip files than checkpoints get a message of their own.
      entry.encrypted = (flags & 1) != 0;
      entry.compressed = method != 0 || packed != entry.size;
      require(entry.begin <= directory_begin_ && directory_begin_ - entry.begin >= 30 &&
              packed <= directory_begin_ - entry.begin - 30);
      total += packed;  // both are at most the file's size here: cannot wrap
      require(total <= file_.size());
      records.emplace_back(std::move(name), entry);
    }

    // As PyTorch does: the first record's folder is everybody's folder.
    const std::size_t slash = records.empty() ? std::string::npos : records.front().first.find('/');
    if (slash != std::string::npos) archive_ = records.front().first.substr(0, slash);
    for (auto& [name, entry] : records) {
      const bool inside = slash != std::string::npos && name.size() > slash && name[slash] == '/' &&
                          name.compare(0, slash, archive_) == 0;
      // A record outside the folder keeps its whole name; nobody asks for it.
      require(records_.emplace(inside ? name.substr(slash + 1) : name, entry).second);
    }
  }

  static void read_zip64(std::string_view extra, std::uint64_t& size, std::uint64_t& packed,
                         std::uint64_t& begin) {
    while (extra.size() >= 4) {
      const auto id = get<std::uint16_t>(extra, 0);
      const auto length = get<std::uint16_t>(extra, 2);
      extra.remove_prefix(4);
      require(length <= extra.size());
      if (id == 1) {
        const std::string_view field = extra.substr(0, length);
        std::size_t at = 0;
        for (std::uint64_t* value : {&size, &packed, &begin}) {
          if (*value != kZipMax32) continue;
          *value = get<std::uint64_t>(field, at);
          at += 8;
        }
      }
      extra.remove_prefix(length);
    }
  }

  const InputFile& file_;
  std::uint64_t directory_begin_ = 0;
  std::string archive_;
  std::unordered_map<std::string, Record> records_;
};

}  // namespace fulmen::checkpoint::detail

// Weights in the format of safetensors: checkpoint::write_safetensors(path, module),
// checkpoint::read_safetensors(path).
#pragma once

#include <fulmen/checkpoint/state.hpp>
#include <fulmen/compiled.hpp>

#include <filesystem>
#include <map>
#include <string>

#if FULMEN_BODIES
#include <fulmen/checkpoint/archive.hpp>
#include <fulmen/checkpoint/atomic_file.hpp>
#include <fulmen/checkpoint/module_state.hpp>
#include <fulmen/checkpoint/pickle.hpp>
#include <fulmen/checkpoint/storage_range.hpp>
#include <fulmen/checkpoint/zip.hpp>
#include <fulmen/error.hpp>
#include <fulmen/shape_text.hpp>

#include <ATen/core/Tensor.h>
#include <ATen/core/grad_mode.h>
#include <ATen/ops/empty.h>
#include <c10/util/Exception.h>

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <new>
#include <stdexcept>
#include <string_view>
#include <tuple>
#include <unordered_set>
#include <utility>
#include <vector>
#endif

namespace torch::nn {
class Module;
}

namespace fulmen::checkpoint {

/// What a safetensors file holds.
struct Safetensors {
  State tensors;                                ///< by name, in the order of the file's data; on the CPU
  std::map<std::string, std::string> metadata;  ///< `__metadata__`: what the writer had to say
};

/// Writes the tensors of a State to a file that safetensors, of Python or Rust, reads; as its save_file()
/// does, byte for byte, but that tensors need not be contiguous.
///
/// The dtypes are those of float64, float32, float16, bfloat16, float8 (e4m3fn, e5m2, e4m3fnuz, e5m2fnuz,
/// e8m0fnu), int8 to int64, uint8 to uint64, bool and complex64. Tensors of any device are written; tensors
/// that overlap in memory are an error, as they would not overlap any more when read. `metadata` is for text
/// of any kind; Hugging Face's transformers expect {"format", "pt"} there.
///
/// The file is written aside, flushed and renamed (see AtomicFile).
///
/// Errors: std::invalid_argument "cannot write safetensors file '<path>': <which tensor and why>" for what
/// the format does not hold; std::runtime_error for the file. Source: the format of safetensors
/// 0.8.
void write_safetensors(const std::filesystem::path& path, const State& tensors,
                       std::map<std::string, std::string> metadata = {});

/// The same for a module's parameters and buffers, as safetensors.torch.save_model does: of tensors that
/// overlap, the one that covers its whole storage (of several, that of the least name) is written, and
/// `metadata` has {name left out, name written} for the others. Loading such a file into the same
/// architecture is strict still: see load_weights(). Error also: std::invalid_argument if none of them covers
/// the whole storage.
void write_safetensors(const std::filesystem::path& path, const torch::nn::Module& module,
                       std::map<std::string, std::string> metadata = {});

/// Reads what write_safetensors() or safetensors wrote. A tensor's bytes are read straight into its memory.
///
/// The file is not trusted, and checked as safetensors does: the header's size (at most 100 MB) and grammar,
/// that each tensor's range is that of its dtype and shape, and that the ranges follow one another from the
/// first byte to the last, without gaps or overlap. Stricter than there: no name may occur twice, nor any
/// field that the format has not. Memory is within a constant factor of the file's size.
///
/// Errors: std::runtime_error "cannot read safetensors file '<path>': <what was found, what was expected>".
Safetensors read_safetensors(const std::filesystem::path& path);

#if FULMEN_BODIES
namespace detail {

inline constexpr std::uint64_t kMaxSafetensorsHeader = 100'000'000;

// What the format calls a dtype, and what Python does. In the order of the data in files: the most aligned
// first, so that each tensor lies at a multiple of its element's size.
struct SafetensorsDtype {
  std::string_view name, python;
};
inline constexpr std::array<SafetensorsDtype, 19> kSafetensorsDtypes{{{"U64", "uint64"},
                                                                      {"I64", "int64"},
                                                                      {"F64", "float64"},
                                                                      {"C64", "complex64"},
                                                                      {"F32", "float32"},
                                                                      {"U32", "uint32"},
                                                                      {"I32", "int32"},
                                                                      {"BF16", "bfloat16"},
                                                                      {"F16", "float16"},
                                                                      {"U16", "uint16"},
                                                                      {"I16", "int16"},
                                                                      {"F8_E5M2FNUZ", "float8_e5m2fnuz"},
                                                                      {"F8_E4M3FNUZ", "float8_e4m3fnuz"},
                                                                      {"F8_E8M0", "float8_e8m0fnu"},
                                                                      {"F8_E4M3", "float8_e4m3fn"},
                                                                      {"F8_E5M2", "float8_e5m2"},
                                                                      {"I8", "int8"},
                                                                      {"U8", "uint8"},
                                                                      {"BOOL", "bool"}}};

// A tensor as the header has it.
struct SafetensorsEntry {
  std::string name;
  std::string dtype;
  std::vector<std::uint64_t> shape;
  std::uint64_t begin = 0, end = 0;  // in the bytes after the header
};

// The header: JSON, of which it needs objects of known fields, strings and integers without a sign. A reader
// of just that, since LibTorch brings none, and fulmen's users need not have one.
class SafetensorsHeader {
 public:
  explicit SafetensorsHeader(std::string_view text) : text_(text) {
    if (!is_utf8(text)) damaged("is not UTF-8");
    std::unordered_set<std::string> names;
    object([&](std::string name) {
      if (!names.insert(name).second) fail("its header has the name '{}' twice", name);
      if (name == "__metadata__") {
        read_metadata();
      } else {
        read_entry(std::move(name));
      }
    });
    skip_space();
    if (at_ != text_.size()) damaged("goes on after its end");
  }

  std::vector<SafetensorsEntry> entries;
  std::map<std::string, std::string> metadata;

 private:
  [[noreturn]] void damaged(const char* what) const { fail("its header {} at byte {}", what, at_); }

  void skip_space() {
    while (at_ < text_.size() && std::string_view(" \t\n\r").find(text_[at_]) != std::string_view::npos)
      ++at_;
  }

  bool next_is(char c) {
    skip_space();
    if (at_ == text_.size() || text_[at_] != c) return false;
    ++at_;
    return true;
  }

  void expect(char c) {
    if (!next_is(c)) fail("its header has no '{}' at byte {}", c, at_);
  }

  // {"name": ..., "name": ...}: calls member(name), which reads the value.
  template <class Member>
  void object(Member&& member) {
    expect('{');
    if (next_is('}')) return;
    do {
      std::string name = string();
      expect(':');
      member(std::move(name));
    } while (next_is(','));
    expect('}');
  }

  void read_metadata() {
    object([&](std::string key) {
      expect_new(metadata.find(key) == metadata.end(), "__metadata__", key);
      expect_string(key);
      metadata.emplace(std::move(key), string());
    });
  }

  void expect_string(const std::string& key) {
    skip_space();
    if (at_ == text_.size() || text_[at_] != '"') fail("its metadata '{}' is no string", key);
  }

  static void expect_new(bool is_new, std::string_view in, std::string_view field) {
    if (!is_new) fail("its header has '{}' twice in '{}'", field, in);
  }

  void read_entry(std::string name) {
    SafetensorsEntry& entry = entries.emplace_back();
    entry.name = std::move(name);
    bool dtype = false, shape = false, offsets = false;
    object([&](const std::string& field) {
      bool* const seen = field == "dtype"          ? &dtype
                         : field == "shape"        ? &shape
                         : field == "data_offsets" ? &offsets
                                                   : nullptr;
      if (seen == nullptr) {
        fail("its header has the field '{}' for tensor '{}', expected dtype, shape and data_offsets", field,
             entry.name);
      }
      expect_new(!std::exchange(*seen, true), entry.name, field);
      if (seen == &dtype) {
        entry.dtype = string();
      } else if (seen == &shape) {
        entry.shape = integers();
      } else {
        const std::vector<std::uint64_t> range = integers();
        if (range.size() != 2) {
          fail("its header has {} data_offsets for tensor '{}', expected 2", range.size(), entry.name);
        }
        entry.begin = range[0];
        entry.end = range[1];
      }
    });
    if (!dtype || !shape || !offsets) {
      fail("its header has no {} for tensor '{}'",
           !dtype   ? "dtype"
           : !shape ? "shape"
                    : "data_offsets",
           entry.name);
    }
  }

  std::vector<std::uint64_t> integers() {
    std::vector<std::uint64_t> values;
    expect('[');
    if (next_is(']')) return values;
    do values.push_back(integer());
    while (next_is(','));
    expect(']');
    return values;
  }

  std::uint64_t integer() {
    skip_space();
    const std::size_t begin = at_;
    std::uint64_t value = 0;
    for (; at_ < text_.size() && text_[at_] >= '0' && text_[at_] <= '9'; ++at_) {
      const auto digit = static_cast<std::uint64_t>(text_[at_] - '0');
      if (value > (std::numeric_limits<std::uint64_t>::max() - digit) / 10)
        damaged("has an integer of more than 64 bits");
      value = value * 10 + digit;
    }
    if (at_ == begin || (text_[begin] == '0' && at_ - begin > 1)) damaged("has no integer without a sign");
    return value;
  }

  std::string string() {
    expect('"');
    std::string value;
    for (;;) {
      const std::size_t plain = std::min(text_.find_first_of("\"\\", at_), text_.size());
      for (const char c : text_.substr(at_, plain - at_)) {
        if (static_cast<unsigned char>(c) < 0x20) damaged("has a control character in a string");
      }
      value += text_.substr(at_, plain - at_);
      at_ = plain;
      if (at_ == text_.size()) damaged("ends in a string");
      if (text_[at_++] == '"') return value;
      escape(value);
    }
  }

  // After a backslash.
  void escape(std::string& value) {
    constexpr std::string_view kLetters = "\"\\/bfnrt", kMeant = "\"\\/\b\f\n\r\t";
    const char letter = at_ < text_.size() ? text_[at_++] : '\0';
    if (const std::size_t known = kLetters.find(letter); known != std::string_view::npos) {
      value += kMeant[known];
      return;
    }
    if (letter != 'u') damaged("has an unknown escape");
    std::uint32_t code = four_digits();
    if (code >= 0xD800 && code < 0xDC00) {  // the first half of a pair that stands for one character
      const bool escaped = text_.substr(at_).starts_with("\\u");
      if (escaped) at_ += 2;
      const std::uint32_t second = escaped ? four_digits() : 0;
      if (second < 0xDC00 || second > 0xDFFF) damaged("has half a surrogate pair");
      code = 0x10000 + ((code - 0xD800) << 10) + (second - 0xDC00);
    } else if (code >= 0xDC00 && code < 0xE000) {
      damaged("has half a surrogate pair");
    }
    append_utf8(value, code);
  }

  std::uint32_t four_digits() {
    std::uint32_t code = 0;
    for (int i = 0; i < 4; ++i, ++at_) {
      const char c = at_ < text_.size() ? text_[at_] : '\0';
      const int digit = c >= '0' && c <= '9'   ? c - '0'
                        : c >= 'a' && c <= 'f' ? c - 'a' + 10
                        : c >= 'A' && c <= 'F' ? c - 'A' + 10
                                               : -1;
      if (digit < 0) damaged("has an escape of other than four digits");
      code = code << 4 | static_cast<std::uint32_t>(digit);
    }
    return code;
  }

  static void append_utf8(std::string& value, std::uint32_t code) {
    const auto more = [&](int shift) { value += static_cast<char>(0x80 | (code >> shift & 0x3F)); };
    if (code < 0x80) {
      value += static_cast<char>(code);
    } else if (code < 0x800) {
      value += static_cast<char>(0xC0 | code >> 6);
      more(0);
    } else if (code < 0x10000) {
      value += static_cast<char>(0xE0 | code >> 12);
      more(6);
      more(0);
    } else {
      value += static_cast<char>(0xF0 | code >> 18);
      more(12);
      more(6);
      more(0);
    }
  }

  std::string_view text_;
  std::size_t at_ = 0;
};

// A string as JSON has it, as safetensors writes it.
inline void append_json(std::string& out, std::string_view text) {
  constexpr std::string_view kSpecial = "\"\\\b\f\n\r\t", kLetters = "\"\\bfnrt";
  out += '"';
  for (const char c : text) {
    if (const std::size_t known = kSpecial.find(c); known != std::string_view::npos) {
      (out += '\\') += kLetters[known];
    } else if (static_cast<unsigned char>(c) < 0x20) {
      out += fulmen::detail::format("\\u{:04x}", static_cast<unsigned>(c));
    } else {
      out += c;
    }
  }
  out += '"';
}

// A tensor to be written.
struct SafetensorsRecord {
  std::string name;
  at::Tensor tensor;
  std::size_t dtype = 0;  // its place in kSafetensorsDtypes
};

inline std::vector<SafetensorsRecord> safetensors_records(const State& tensors) {
  std::vector<SafetensorsRecord> records;
  for (const auto& entry : tensors.dict()) {
    if (!entry.key().isString()) fail<std::invalid_argument>("a key is no string");
    SafetensorsRecord record;
    record.name = entry.key().toStringRef();
    if (!is_utf8(record.name))
      fail<std::invalid_argument>("the name '{}' is not UTF-8", printable(record.name));
    if (record.name == "__metadata__")
      fail<std::invalid_argument>("a tensor cannot be called '__metadata__'");
    if (!entry.value().isTensor() || !entry.value().toTensor().defined()) {
      fail<std::invalid_argument>(
          "'{}' is {}, expected a tensor", record.name,
          entry.value().isTensor() ? "an undefined tensor" : fulmen::detail::kind_of(entry.value()));
    }
    record.tensor = entry.value().toTensor().detach();
    if (record.tensor.layout() != c10::kStrided || record.tensor.is_quantized() ||
        record.tensor.is_nested() || record.tensor.is_meta() || !record.tensor.has_storage()) {
      fail<std::invalid_argument>(
          "'{}' is a tensor that is sparse, quantized, nested or without data, expected a dense one",
          record.name);
    }
    const std::string python = dtype_name(record.tensor.scalar_type());
    const auto known = std::find_if(kSafetensorsDtypes.begin(), kSafetensorsDtypes.end(),
                                    [&](const SafetensorsDtype& dtype) { return dtype.python == python; });
    if (known == kSafetensorsDtypes.end()) {
      fail<std::invalid_argument>("'{}' is a tensor of dtype {}, which the format has not", record.name,
                                  c10::toString(record.tensor.scalar_type()));
    }
    record.dtype = static_cast<std::size_t>(known - kSafetensorsDtypes.begin());
    records.push_back(std::move(record));
  }
  return records;
}

// Tensors that overlap in memory, by their indices: each group with two or more.
inline std::vector<std::vector<std::size_t>> overlapping(const std::vector<SafetensorsRecord>& records) {
  std::vector<std::pair<StorageRange, std::size_t>> ranges;
  for (std::size_t i = 0; i < records.size(); ++i) {
    if (const StorageRange range = storage_range(records[i].tensor); !range.empty())
      ranges.emplace_back(range, i);
  }
  std::sort(ranges.begin(), ranges.end(), [](const auto& a, const auto& b) {
    return std::tuple(a.first.storage, a.first.begin, a.second) <
           std::tuple(b.first.storage, b.first.begin, b.second);
  });
  std::vector<std::vector<std::size_t>> groups;
  for (std::size_t first = 0; first < ranges.size();) {
    std::vector<std::size_t> group{ranges[first].second};
    std::uint64_t end = ranges[first].first.end;
    std::size_t next = first + 1;
    for (; next < ranges.size() && ranges[next].first.storage == ranges[first].first.storage &&
           ranges[next].first.begin < end;
         ++next) {
      end = std::max(end, ranges[next].first.end);
      group.push_back(ranges[next].second);
    }
    if (group.size() > 1) groups.push_back(std::move(group));
    first = next;
  }
  return groups;
}

inline std::string names_of(const std::vector<SafetensorsRecord>& records,
                            const std::vector<std::size_t>& group) {
  std::string text;
  for (const std::size_t i : group) text += (text.empty() ? "'" : ", '") + records[i].name + "'";
  return text;
}

// Leaves one of each group of overlapping tensors, as save_model does.
inline void keep_one_of_each(std::vector<SafetensorsRecord>& records,
                             std::map<std::string, std::string>& metadata) {
  std::unordered_set<std::string> left_out;
  for (const std::vector<std::size_t>& group : overlapping(records)) {
    const SafetensorsRecord* kept = nullptr;
    for (const std::size_t i : group) {
      const at::Tensor& tensor = records[i].tensor;
      const bool complete = tensor.storage_offset() == 0 && tensor.nbytes() == tensor.storage().nbytes();
      if (complete && (kept == nullptr || records[i].name < kept->name)) kept = &records[i];
    }
    if (kept == nullptr) {
      fail<std::invalid_argument>(
          "{} overlap in memory, and none of them covers its whole storage, expected one that does",
          names_of(records, group));
    }
    for (const std::size_t i : group) {
      if (&records[i] == kept) continue;
      metadata.emplace(records[i].name, kept->name);
      left_out.insert(records[i].name);
    }
  }
  std::erase_if(records, [&](const SafetensorsRecord& record) { return left_out.contains(record.name); });
}

inline void write_safetensors_records(const std::filesystem::path& path,
                                      std::vector<SafetensorsRecord> records,
                                      const std::map<std::string, std::string>& metadata) {
  std::sort(records.begin(), records.end(), [](const SafetensorsRecord& a, const SafetensorsRecord& b) {
    return std::tie(a.dtype, a.name) < std::tie(b.dtype, b.name);
  });
  std::string header = "{";
  if (!metadata.empty()) {
    header += "\"__metadata__\":{";
    for (const auto& [key, value] : metadata) {
      if (!is_utf8(key) || !is_utf8(value)) {
        fail<std::invalid_argument>("the metadata '{}' is not UTF-8", printable(key));
      }
      if (header.back() != '{') header += ',';
      append_json(header, key);
      header += ':';
      append_json(header, value);
    }
    header += '}';
  }
  std::uint64_t offset = 0;
  for (const SafetensorsRecord& record : records) {
    if (header.back() != '{') header += ',';
    append_json(header, record.name);
    header +=
        fulmen::detail::format(":{{\"dtype\":\"{}\",\"shape\":[", kSafetensorsDtypes[record.dtype].name);
    for (std::int64_t d = 0; d < record.tensor.dim(); ++d) {
      header += (d > 0 ? "," : "") + std::to_string(record.tensor.size(d));
    }
    const std::uint64_t begin = std::exchange(offset, offset + record.tensor.nbytes());
    header += fulmen::detail::format("],\"data_offsets\":[{},{}]}}", begin, offset);
  }
  header += '}';
  header.resize((header.size() + 7) / 8 * 8, ' ');
  const std::uint64_t size = header.size();
  if (size > kMaxSafetensorsHeader) {
    fail<std::invalid_argument>("its header has {} bytes, expected at most {}", size, kMaxSafetensorsHeader);
  }

  AtomicFile file(path, "safetensors file");
  file.append(&size, sizeof size);
  file.append(header.data(), header.size());
  for (const SafetensorsRecord& record : records) {
    const at::Tensor bytes = record.tensor.resolve_conj().resolve_neg().contiguous().cpu();
    file.append(bytes.const_data_ptr(), bytes.nbytes());
  }
  file.commit();
}

// Runs what writes, and names the file in its errors but in AtomicFile's, which do already.
template <class Write>
void writing_safetensors(const std::filesystem::path& path, Write&& write) {
  const std::string prefix = "cannot write safetensors file '" + path.string() + "': ";
  const at::NoGradGuard no_grad;
  try {
    write();
  } catch (const std::invalid_argument& error) {
    throw std::invalid_argument(prefix + error.what());
  } catch (const c10::Error& error) {
    throw std::runtime_error(prefix + one_line(error));
  } catch (const std::bad_alloc&) {
    throw std::runtime_error(prefix + "out of memory");
  }
}

// An empty tensor of that kind. Errors: the dtype is unknown, the range is another than the shape's.
inline at::Tensor safetensors_tensor(const SafetensorsEntry& entry) {
  const auto known = std::find_if(kSafetensorsDtypes.begin(), kSafetensorsDtypes.end(),
                                  [&](const SafetensorsDtype& dtype) { return dtype.name == entry.dtype; });
  const c10::ScalarType dtype =
      known == kSafetensorsDtypes.end() ? c10::ScalarType::Undefined : dtype_of(known->python);
  if (dtype == c10::ScalarType::Undefined) {
    fail("tensor '{}' has the dtype '{}', which is not supported", entry.name, entry.dtype);
  }
  // A dimension of zero must not hide others whose strides overflow: `span` counts it as one.
  constexpr std::uint64_t kMost = std::numeric_limits<std::int64_t>::max();
  const std::uint64_t element = c10::elementSize(dtype);
  std::uint64_t span = element, bytes = element;
  std::vector<std::int64_t> shape;
  for (const std::uint64_t size : entry.shape) {
    if (size > kMost || span > kMost / std::max<std::uint64_t>(size, 1)) {
      fail("tensor '{}' has more than 2^63 bytes by its shape", entry.name);
    }
    span *= std::max<std::uint64_t>(size, 1);
    bytes *= size;
    shape.push_back(static_cast<std::int64_t>(size));
  }
  if (bytes != entry.end - entry.begin) {
    fail("tensor '{}' of dtype {} and shape {} has {} bytes, expected {}", entry.name, entry.dtype,
         fulmen::detail::shape_text(shape), entry.end - entry.begin, bytes);
  }
  return at::empty(shape, at::TensorOptions().dtype(dtype).device(at::kCPU));
}

inline Safetensors read_safetensors_file(const std::filesystem::path& path) {
  const InputFile file(path);
  if (file.size() < 8) fail("it has {} bytes, expected at least the 8 of the header's size", file.size());
  std::uint64_t size = 0;
  file.read(0, &size, sizeof size);
  if (size > kMaxSafetensorsHeader) {
    fail(
        "its header has {} bytes by its first 8 bytes, expected at most {}: it is no safetensors file, or "
        "damaged",
        size, kMaxSafetensorsHeader);
  }
  if (size > file.size() - 8) {
    fail("its header has {} bytes, and only {} follow: the file is truncated, or no safetensors file", size,
         file.size() - 8);
  }
  const std::string text = file.read(8, static_cast<std::size_t>(size));
  if (!text.starts_with('{')) fail("its header does not begin with '{{': it is no safetensors file");
  SafetensorsHeader header(text);

  // The writer is free in the order of the header; ranges are checked, and tensors read, in that of the data.
  std::stable_sort(header.entries.begin(), header.entries.end(), [](const auto& a, const auto& b) {
    return std::pair(a.begin, a.end) < std::pair(b.begin, b.end);
  });
  const std::uint64_t data = file.size() - 8 - size;
  std::uint64_t end = 0;
  for (const SafetensorsEntry& entry : header.entries) {
    if (entry.begin != end || entry.end < entry.begin || entry.end > data) {
      fail("tensor '{}' is at {} to {}, expected it to begin at {} and to end at {} at the latest",
           entry.name, entry.begin, entry.end, end, data);
    }
    end = entry.end;
  }
  if (end != data) fail("{} bytes follow the header, expected the {} of its tensors", data, end);

  Safetensors result{.tensors = State("safetensors file"), .metadata = std::move(header.metadata)};
  for (const SafetensorsEntry& entry : header.entries) {
    const at::Tensor tensor = safetensors_tensor(entry);
    auto* const bytes = static_cast<unsigned char*>(tensor.mutable_data_ptr());
    if (tensor.nbytes() > 0) file.read(8 + size + entry.begin, bytes, tensor.nbytes());
    // Other bytes than 0 and 1 are no bool of C++.
    if (entry.dtype == "BOOL")
      std::transform(bytes, bytes + tensor.nbytes(), bytes, [](unsigned char b) { return b != 0; });
    result.tensors.set(entry.name, tensor);
  }
  return result;
}

}  // namespace detail

FULMEN_INLINE void write_safetensors(const std::filesystem::path& path, const State& tensors,
                                     std::map<std::string, std::string> metadata) {
  detail::writing_safetensors(path, [&] {
    std::vector<detail::SafetensorsRecord> records = detail::safetensors_records(tensors);
    if (const auto groups = detail::overlapping(records); !groups.empty()) {
      fail<std::invalid_argument>(
          "{} overlap in memory, expected tensors of their own: clone them, or write the module, of which "
          "one of them is "
          "kept",
          detail::names_of(records, groups.front()));
    }
    detail::write_safetensors_records(path, std::move(records), metadata);
  });
}

FULMEN_INLINE void write_safetensors(const std::filesystem::path& path, const torch::nn::Module& module,
                                     std::map<std::string, std::string> metadata) {
  detail::writing_safetensors(path, [&] {
    std::vector<detail::SafetensorsRecord> records = detail::safetensors_records(module_state(module));
    detail::keep_one_of_each(records, metadata);
    detail::write_safetensors_records(path, std::move(records), metadata);
  });
}

FULMEN_INLINE Safetensors read_safetensors(const std::filesystem::path& path) {
  return detail::reading("safetensors file", path, [&] { return detail::read_safetensors_file(path); });
}
#endif

}  // namespace fulmen::checkpoint

// Reads event files in tests: frames with their checksums, and of each event what the tests ask for.
#pragma once

#include <bit>
#include <cstdint>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <map>
#include <sstream>
#include <stdexcept>
#include <string>
#include <string_view>
#include <vector>

inline std::string contents_of(const std::filesystem::path& path) {
  std::ifstream file(path, std::ios::binary);
  if (!file) throw std::runtime_error("cannot read " + path.string());
  std::ostringstream text;
  text << file.rdbuf();
  return text.str();
}

inline std::filesystem::path event_file(const std::filesystem::path& folder) {
  std::filesystem::path found;
  for (const auto& entry : std::filesystem::directory_iterator(folder)) {
    if (entry.path().filename().string().starts_with("events.out.tfevents.")) found = entry.path();
  }
  return found;
}

template <class T>
T little_endian(std::string_view bytes) {
  T value = 0;
  for (std::size_t i = 0; i < sizeof(T); ++i) {
    value |= static_cast<T>(static_cast<T>(static_cast<unsigned char>(bytes.at(i))) << (8 * i));
  }
  return value;
}

/// Bit by bit, by the definition.
inline std::uint32_t crc32c(std::string_view bytes) {
  std::uint32_t crc = 0xFFFFFFFF;
  for (const char c : bytes) {
    crc ^= static_cast<unsigned char>(c);
    for (int bit = 0; bit < 8; ++bit) crc = (crc >> 1) ^ ((crc & 1) != 0 ? 0x82F63B78u : 0u);
  }
  return ~crc;
}

/// The records of an event file. A last one that is cut is left out; a wrong checksum is an error.
inline std::vector<std::string> records_of(std::string_view file) {
  const auto check = [](std::string_view bytes, std::string_view masked) {
    const std::uint32_t crc = crc32c(bytes);
    if (little_endian<std::uint32_t>(masked) != ((crc >> 15) | (crc << 17)) + 0xA282EAD8u) {
      throw std::runtime_error("wrong checksum");
    }
  };
  std::vector<std::string> records;
  while (file.size() >= 12) {
    check(file.substr(0, 8), file.substr(8, 4));
    const std::size_t size = little_endian<std::uint64_t>(file);
    if (file.size() < 16 + size) break;
    check(file.substr(12, size), file.substr(12 + size, 4));
    records.emplace_back(file.substr(12, size));
    file.remove_prefix(16 + size);
  }
  return records;
}

/// A message: field number -> its values, each as its bytes (numbers: 8 bytes, or 4 for float32).
struct Fields : std::multimap<unsigned, std::string> {
  explicit Fields(std::string_view message) {
    const auto varint = [&] {
      std::uint64_t value = 0;
      for (int shift = 0;; shift += 7) {
        const auto byte = static_cast<unsigned char>(message.at(0));
        message.remove_prefix(1);
        value |= static_cast<std::uint64_t>(byte & 0x7F) << shift;
        if (byte < 0x80) return value;
      }
    };
    const auto take = [&](std::size_t size) {
      if (size > message.size()) throw std::runtime_error("a field is longer than its message");
      const std::string bytes(message.substr(0, size));
      message.remove_prefix(size);
      return bytes;
    };
    while (!message.empty()) {
      const std::uint64_t key = varint();
      const auto field = static_cast<unsigned>(key >> 3);
      switch (key & 7) {
        case 0: {
          std::string bytes(8, '\0');
          const std::uint64_t value = varint();
          std::memcpy(bytes.data(), &value, 8);
          emplace(field, bytes);
          break;
        }
        case 1:
          emplace(field, take(8));
          break;
        case 2:
          emplace(field, take(varint()));
          break;
        case 5:
          emplace(field, take(4));
          break;
        default:
          throw std::runtime_error("unknown wire type");
      }
    }
  }
  std::string bytes(unsigned field) const {
    const auto found = find(field);
    return found == end() ? "" : found->second;
  }
  std::int64_t integer(unsigned field) const {
    const auto found = find(field);
    return found == end() ? 0 : little_endian<std::int64_t>(found->second);
  }
  double float64(unsigned field) const { return std::bit_cast<double>(integer(field)); }
  Fields message(unsigned field) const { return Fields(bytes(field)); }
};

struct ScalarEvent {
  std::string tag;
  std::int64_t step;
  float value;
};

/// The scalars of an event file, in order.
inline std::vector<ScalarEvent> scalars_of(const std::filesystem::path& path) {
  std::vector<ScalarEvent> out;
  for (const std::string& record : records_of(contents_of(path))) {
    const Fields event(record);
    const Fields value = event.message(5).message(1);
    if (!value.contains(2)) continue;
    out.push_back({value.bytes(1), event.integer(2),
                   std::bit_cast<float>(little_endian<std::uint32_t>(value.bytes(2)))});
  }
  return out;
}

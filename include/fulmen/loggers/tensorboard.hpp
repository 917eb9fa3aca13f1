// TensorBoardLogger: event files as TensorBoard reads them, with scalars, texts, images, histograms and
// hyper-parameters.
#pragma once

#include <fulmen/checkpoint/state.hpp>
#include <fulmen/compiled.hpp>
#include <fulmen/loggers/background_writer.hpp>
#include <fulmen/loop/context.hpp>

#include <ATen/core/Tensor.h>

#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <optional>
#include <string>
#include <string_view>

#if FULMEN_BODIES
#include <fulmen/checkpoint/crc32.hpp>
#include <fulmen/error.hpp>
#include <fulmen/loggers/hyperparameters.hpp>
#include <fulmen/shape_text.hpp>

#include <unistd.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <bit>
#include <chrono>
#include <cmath>
#include <ctime>
#include <span>
#include <stdexcept>
#include <system_error>
#include <utility>
#include <vector>

#ifndef FULMEN_WITH_ZLIB
#define FULMEN_WITH_ZLIB 0
#endif
#if FULMEN_WITH_ZLIB
#include <zlib.h>
#endif
#endif

namespace fulmen {

struct TensorBoardOptions {
  double flush_secs = 1;  ///< so long at most is an event kept from the file; 120 in Python
  bool default_hp_metric =
      true;  ///< hyper-parameters without metrics come with hp_metric = -1, or are not shown
};

/// Lightning's TensorBoardLogger: `events.out.tfevents.<seconds>.<host>.<pid>.<n>` in the run's folder, in
/// which each logged value is a scalar under its name, and the epoch one called `epoch` (unless a value has
/// this name). Lightning leaves the epoch out where a step was given by hand; here it is always there.
///
/// The log_… members are those of Python's SummaryWriter (add_scalar, add_text, add_image, add_histogram) and
/// write the same bytes, but for the compression of images:
///
///   std::get<TensorBoardLogger>(ctx.loggers()).log_histogram("weight", layer->weight, ctx.global_step());
///
/// Before the file is open (the first log_metrics(), or open()) they keep what they are given. `tag` names a
/// curve or a card, with '/' for groups. Events are written by a BackgroundWriter, whose errors all members
/// throw.
class TensorBoardLogger {
 public:
  explicit TensorBoardLogger(TensorBoardOptions options = {});

  void log_metrics(Context& ctx, const Metrics& metrics, std::int64_t step);
  /// All events are in the file afterwards.
  void finalize(Context& ctx);

  /// Without a Trainer, or before it: the folder (made if there is none) in which the event file is to be.
  /// Once.
  /// @throws std::runtime_error naming the file if it cannot be made; std::logic_error if there is one
  /// already.
  void open(const std::filesystem::path& folder);
  void flush();
  /// The event file; empty before it is open.
  const std::filesystem::path& path() const { return path_; }

  /// Stored as float32, as Python does.
  void log_scalar(std::string_view tag, double value, std::int64_t step);
  /// @param text Markdown
  void log_text(std::string_view tag, std::string_view text, std::int64_t step);
  /// @param image [channels, height, width], channels: 1 (grey), 2 (and alpha), 3 (RGB) or 4 (and alpha);
  /// uint8, or floating point, of which [0, 1] is shown and what is beyond becomes 0 or 1. Any device.
  /// @throws std::invalid_argument naming the tag for other tensors; std::runtime_error in a program built
  /// without zlib.
  void log_image(std::string_view tag, const at::Tensor& image, std::int64_t step);
  /// How the values of a tensor of any shape are distributed, in SummaryWriter's default bins: 1549 limits,
  /// each 1.1 times the one before, from -1e20 to 1e20. Any device; a copy in float64 is made on the CPU.
  /// @throws std::invalid_argument naming the tag if no value is in the bins.
  void log_histogram(std::string_view tag, const at::Tensor& values, std::int64_t step);
  /// Shown in the table of hyper-parameters (HPARAMS). Nested States are made flat: "optimizer/lr".
  /// @param metrics what the runs are to be compared by, with their values: names of logged scalars. Call it
  /// once a run.
  void log_hyperparams(const State& params, const std::optional<Metrics>& metrics = {});

 private:
  void write(std::string_view event);

  TensorBoardOptions options_;
  BackgroundWriter writer_;
  std::size_t file_ = 0;
  std::filesystem::path path_;
  std::string early_;  // what came before the file was open
};

/// Events, without their frame. They are encoded by hand, a few fields of a few messages: a libprotobuf of
/// another version than the one inside LibTorch is a clash of symbols when the program runs.
namespace detail::tensorboard {

std::string version_event(double wall_time);
std::string scalar_event(double wall_time, std::int64_t step, std::string_view tag, double value);
std::string text_event(double wall_time, std::int64_t step, std::string_view tag, std::string_view text);
std::string image_event(double wall_time, std::int64_t step, std::string_view tag, const at::Tensor& image);
std::string histogram_event(double wall_time, std::int64_t step, std::string_view tag,
                            const at::Tensor& values);
/// Three records of the plugin "hparams": the experiment, the session's start and its end.
std::string hyperparameter_records(double wall_time, const State& params, const Metrics& metrics);
/// The event in the frame of TFRecord files: length, masked CRC-32C of the length, event, masked CRC-32C of
/// the event.
std::string record(std::string_view event);

}  // namespace detail::tensorboard

#if FULMEN_BODIES

namespace detail::tensorboard {

// CRC-32C (Castagnoli; RFC 3720, appendix B.4), reflected.
inline constexpr auto crc32c_tables = checkpoint::detail::make_crc32_tables(0x82F63B78);

// Masked, as TFRecord files have it: the CRC of bytes that hold their own CRC would not tell much.
FULMEN_INLINE std::uint32_t masked_crc32c(std::string_view bytes) {
  const auto* data = reinterpret_cast<const unsigned char*>(bytes.data());
  const std::uint32_t crc = checkpoint::detail::crc32_by_table(~0u, data, bytes.size(), crc32c_tables);
  return std::rotr(~crc, 15) + 0xA282EAD8u;
}

template <class T>
void append_little_endian(std::string& out, T value) {
  for (std::size_t i = 0; i < sizeof value; ++i) out += static_cast<char>((value >> (8 * i)) & 0xFF);
}

// A message of protocol buffers in the making. Fields are to be added in the order of their numbers, and
// those with their default value left out, for the bytes to be those of other writers.
class Message {
 public:
  Message& integer(unsigned field, std::int64_t value) {
    key(field, 0);
    varint(static_cast<std::uint64_t>(value));
    return *this;
  }
  Message& float32(unsigned field, float value) {
    key(field, 5);
    append_little_endian(bytes_, std::bit_cast<std::uint32_t>(value));
    return *this;
  }
  Message& float64(unsigned field, double value) {
    key(field, 1);
    append_little_endian(bytes_, std::bit_cast<std::uint64_t>(value));
    return *this;
  }
  Message& bytes(unsigned field, std::string_view value) {
    key(field, 2);
    varint(value.size());
    bytes_ += value;
    return *this;
  }
  Message& message(unsigned field, const Message& value) { return bytes(field, value.bytes_); }
  Message& packed(unsigned field, const std::vector<double>& values) {
    key(field, 2);
    varint(8 * values.size());
    for (const double value : values) append_little_endian(bytes_, std::bit_cast<std::uint64_t>(value));
    return *this;
  }
  // The same, or nothing for the default value.
  Message& integer_if(unsigned field, std::int64_t value) {
    return value == 0 ? *this : integer(field, value);
  }
  Message& float64_if(unsigned field, double value) {
    return std::bit_cast<std::uint64_t>(value) == 0 ? *this : float64(field, value);
  }
  Message& bytes_if(unsigned field, std::string_view value) {
    return value.empty() ? *this : bytes(field, value);
  }

  const std::string& str() const { return bytes_; }

 private:
  void key(unsigned field, unsigned wire_type) { varint(field << 3 | wire_type); }
  void varint(std::uint64_t value) {
    for (; value >= 0x80; value >>= 7) bytes_ += static_cast<char>(value | 0x80);
    bytes_ += static_cast<char>(value);
  }

  std::string bytes_;
};

// An Event with a Summary of one Value. Field numbers: event.proto and summary.proto of TensorBoard.
FULMEN_INLINE std::string summary_event(double wall_time, std::int64_t step, const Message& value) {
  return Message().float64_if(1, wall_time).integer_if(2, step).message(5, Message().message(1, value)).str();
}

// A SummaryMetadata.
FULMEN_INLINE Message plugin(std::string_view name, std::string_view content) {
  return Message().message(1, Message().bytes(1, name).bytes_if(2, content));
}

FULMEN_INLINE std::string record(std::string_view event) {
  std::string out;
  append_little_endian(out, static_cast<std::uint64_t>(event.size()));
  append_little_endian(out, masked_crc32c(out));
  out += event;
  append_little_endian(out, masked_crc32c(event));
  return out;
}

FULMEN_INLINE std::string version_event(double wall_time) {
  return Message()
      .float64_if(1, wall_time)
      .bytes(3, "brain.Event:2")
      .message(10, Message().bytes(1, "fulmen"))
      .str();
}

FULMEN_INLINE std::string scalar_event(double wall_time, std::int64_t step, std::string_view tag,
                                       double value) {
  return summary_event(wall_time, step, Message().bytes_if(1, tag).float32(2, static_cast<float>(value)));
}

FULMEN_INLINE std::string text_event(double wall_time, std::int64_t step, std::string_view tag,
                                     std::string_view text) {
  const Message one_dim = Message().message(2, Message().integer(1, 1));
  const Message tensor = Message().integer(1, 7 /* DT_STRING */).message(2, one_dim).bytes(8, text);
  const std::string name = std::string(tag) + "/text_summary";
  return summary_event(wall_time, step,
                       Message().bytes(1, name).message(8, tensor).message(9, plugin("text", "")));
}

// The limits of torch.utils.tensorboard's bins, computed as there: multiplying, not by powers.
FULMEN_INLINE std::vector<double> histogram_limits() {
  std::vector<double> limits;
  for (double v = 1e-12; v < 1e20; v *= 1.1) limits.push_back(v);
  std::vector<double> all;
  all.reserve(2 * limits.size() + 1);
  for (auto v = limits.rbegin(); v != limits.rend(); ++v) all.push_back(-*v);
  all.push_back(0);
  all.insert(all.end(), limits.begin(), limits.end());
  return all;
}

FULMEN_INLINE std::string histogram_event(double wall_time, std::int64_t step, std::string_view tag,
                                          const at::Tensor& values) {
  if (!values.defined() || values.numel() == 0)
    fail<std::invalid_argument>("histogram '{}': the tensor has no elements", tag);
  const at::Tensor flat = values.detach().to(at::kCPU, at::kDouble).reshape({-1}).contiguous();
  const double* const begin = flat.const_data_ptr<double>();
  const auto size = static_cast<std::size_t>(flat.numel());

  static const std::vector<double> limits = histogram_limits();
  std::vector<double> counts(limits.size() - 1);
  double min = begin[0], max = begin[0], sum = 0, squares = 0;
  for (std::size_t i = 0; i < size; ++i) {
    const double v = begin[i];
    // Not a number makes all of these not a number, as numpy does.
    min = v < min || std::isnan(v) ? v : min;
    max = v > max || std::isnan(v) ? v : max;
    sum += v;
    squares += v * v;
    if (!(v >= limits.front() && v <= limits.back())) continue;
    // A bin has its lower limit; the last one its upper one, too.
    const auto upper =
        static_cast<std::size_t>(std::upper_bound(limits.begin(), limits.end(), v) - limits.begin());
    ++counts[std::min(upper, counts.size()) - 1];
  }

  const auto filled = [](double count) { return count > 0; };
  const auto first =
      static_cast<std::size_t>(std::find_if(counts.begin(), counts.end(), filled) - counts.begin());
  if (first == counts.size()) {
    fail<std::invalid_argument>("histogram '{}': none of the {} values (min {}, max {}) is between {} and {}",
                                tag, size, min, max, limits.front(), limits.back());
  }
  const auto end =
      counts.size() -
      static_cast<std::size_t>(std::find_if(counts.rbegin(), counts.rend(), filled) - counts.rbegin());
  // A bin is written by its upper limit; an empty one before the first gives that one's lower limit.
  std::vector<double> used_counts, used_limits(limits.begin() + static_cast<std::ptrdiff_t>(first),
                                               limits.begin() + static_cast<std::ptrdiff_t>(end) + 1);
  used_counts.push_back(0);
  used_counts.insert(used_counts.end(), counts.begin() + static_cast<std::ptrdiff_t>(first),
                     counts.begin() + static_cast<std::ptrdiff_t>(end));
  const Message histogram = Message()
                                .float64_if(1, min)
                                .float64_if(2, max)
                                .float64_if(3, static_cast<double>(size))
                                .float64_if(4, sum)
                                .float64_if(5, squares)
                                .packed(6, used_limits)
                                .packed(7, used_counts);
  return summary_event(wall_time, step, Message().bytes_if(1, tag).message(5, histogram));
}

// A PNG file (W3C, "Portable Network Graphics", 2003) with 8 bits a channel, rows unfiltered.
FULMEN_INLINE std::string png([[maybe_unused]] std::string_view tag, [[maybe_unused]] const at::Tensor& hwc) {
#if FULMEN_WITH_ZLIB
  const auto height = static_cast<std::size_t>(hwc.size(0)),
             row = static_cast<std::size_t>(hwc.size(1) * hwc.size(2));
  const auto* const pixels = reinterpret_cast<const char*>(hwc.const_data_ptr<std::uint8_t>());
  std::string raw;
  raw.reserve(height * (row + 1));
  for (std::size_t y = 0; y < height; ++y) (raw += '\0').append(pixels + y * row, row);
  uLongf size = compressBound(raw.size());
  std::string packed(size, '\0');
  const int code = compress2(reinterpret_cast<Bytef*>(packed.data()), &size,
                             reinterpret_cast<const Bytef*>(raw.data()), raw.size(), Z_DEFAULT_COMPRESSION);
  if (code != Z_OK) fail("image '{}': zlib gives error {} for {} bytes", tag, code, raw.size());
  packed.resize(size);

  std::string out = "\x89PNG\r\n\x1a\n";
  const auto big_endian = [](std::string& to, std::size_t value) {
    for (int shift = 24; shift >= 0; shift -= 8) to += static_cast<char>((value >> shift) & 0xFF);
  };
  const auto chunk = [&](std::string name, const std::string& data) {
    big_endian(out, data.size());
    name += data;
    out += name;
    big_endian(out, checkpoint::detail::crc32(0, name.data(), name.size()));
  };
  constexpr std::array<char, 5> color_types{0, 0, 4, 2, 6};  // by channels
  std::string header;
  big_endian(header, static_cast<std::size_t>(hwc.size(1)));
  big_endian(header, height);
  header += '\x08';
  header += color_types[static_cast<std::size_t>(hwc.size(2))];
  header.append(3, '\0');
  chunk("IHDR", header);
  chunk("IDAT", packed);
  chunk("IEND", "");
  return out;
#else
  fail("image '{}': images are PNG files, and this program was built without zlib", tag);
#endif
}

FULMEN_INLINE std::string image_event(double wall_time, std::int64_t step, std::string_view tag,
                                      const at::Tensor& image) {
  const bool fits = image.defined() && image.dim() == 3 && image.size(0) >= 1 && image.size(0) <= 4 &&
                    image.numel() > 0 && (image.scalar_type() == at::kByte || image.is_floating_point());
  if (!fits) {
    fail<std::invalid_argument>(
        "image '{}' is {} of shape {}, expected [channels, height, width] of uint8 or floating "
        "point, with 1 to 4 channels",
        tag, image.defined() ? c10::toString(image.scalar_type()) : "undefined",
        image.defined() ? detail::shape_text(image.sizes()) : "[]");
  }
  at::Tensor hwc = image.detach().permute({1, 2, 0}).cpu();
  if (image.is_floating_point()) {
    const at::Tensor values = hwc.to(at::kFloat).contiguous();
    hwc = values.to(at::kByte);
    const float* from = values.const_data_ptr<float>();
    // Cut off, not rounded, as Python does; what is not a number is black.
    for (std::uint8_t& to :
         std::span(hwc.mutable_data_ptr<std::uint8_t>(), static_cast<std::size_t>(hwc.numel()))) {
      const float v = *from++ * 255;
      to = v > 0 ? static_cast<std::uint8_t>(std::min(v, 255.0f)) : std::uint8_t{0};
    }
  }
  hwc = hwc.contiguous();
  const Message encoded = Message()
                              .integer(1, hwc.size(0))
                              .integer(2, hwc.size(1))
                              .integer(3, hwc.size(2))
                              .bytes(4, png(tag, hwc));
  return summary_event(wall_time, step, Message().bytes_if(1, tag).message(4, encoded));
}

// Field numbers: api.proto and plugin_data.proto of TensorBoard's plugin hparams.
FULMEN_INLINE std::string hyperparameter_records(double wall_time, const State& params,
                                                 const Metrics& metrics) {
  Message experiment, start;
  for (const Hyperparameter& param : flat_hyperparameters(params)) {
    const Message value = param.number ? Message().float64(2, *param.number) : Message().bytes(3, param.text);
    start.message(1, Message().bytes(1, param.name).message(2, value));
    experiment.message(4,
                       Message().bytes(1, param.name).integer(4, param.number ? 3 : 1 /* float64, string */));
  }
  for (const Metric& metric : metrics)
    experiment.message(5, Message().message(1, Message().bytes(2, metric.name)));
  const Message end = Message().integer(1, 1 /* success */);

  std::string out;
  const auto add = [&](std::string_view tag, unsigned field, const Message& content) {
    const Message metadata = plugin("hparams", Message().message(field, content).str());
    out += record(summary_event(wall_time, 0, Message().bytes(1, tag).message(9, metadata)));
  };
  add("_hparams_/experiment", 2, experiment);
  add("_hparams_/session_start_info", 3, start);
  add("_hparams_/session_end_info", 4, end);
  return out;
}

FULMEN_INLINE double now() {
  return std::chrono::duration<double>(std::chrono::system_clock::now().time_since_epoch()).count();
}

}  // namespace detail::tensorboard

FULMEN_INLINE TensorBoardLogger::TensorBoardLogger(TensorBoardOptions options)
    : options_(options),
      writer_("event file", {.interval = std::chrono::duration<double>(options.flush_secs)}) {}

FULMEN_INLINE void TensorBoardLogger::open(const std::filesystem::path& folder) {
  if (!path_.empty())
    fail<std::logic_error>("open('{}'): the event file is '{}' already", folder.string(), path_.string());
  std::error_code error;
  std::filesystem::create_directories(folder, error);
  if (error) fail("cannot make the folder '{}' for an event file: {}", folder.string(), error.message());
  std::array<char, 256> host{};
  if (::gethostname(host.data(), host.size() - 1) != 0) host[0] = '?';
  static std::atomic<unsigned> count{0};  // two loggers of one second
  const std::filesystem::path path =
      folder / detail::format("events.out.tfevents.{:010}.{}.{}.{}", std::time(nullptr), host.data(),
                              ::getpid(), count++);
  namespace events = detail::tensorboard;
  file_ = writer_.add(path, events::record(events::version_event(events::now())));
  path_ = path;
  if (!early_.empty()) writer_.append(file_, std::exchange(early_, {}));
}

FULMEN_INLINE void TensorBoardLogger::write(std::string_view records) {
  if (path_.empty())
    early_ += records;
  else
    writer_.append(file_, records);
}

FULMEN_INLINE void TensorBoardLogger::log_metrics(Context& ctx, const Metrics& metrics, std::int64_t step) {
  namespace events = detail::tensorboard;
  if (path_.empty()) open(ctx.run_dir());
  const double now = events::now();
  std::string records;
  for (const Metric& metric : metrics)
    records += events::record(events::scalar_event(now, step, metric.name, metric.value));
  if (!metrics.find("epoch")) {
    records += events::record(events::scalar_event(now, step, "epoch", static_cast<double>(ctx.epoch())));
  }
  write(records);
}

FULMEN_INLINE void TensorBoardLogger::finalize(Context& ctx) {
  if (path_.empty() && !early_.empty() && ctx.writes_files()) open(ctx.run_dir());
  flush();
}

FULMEN_INLINE void TensorBoardLogger::flush() { writer_.flush(); }

FULMEN_INLINE void TensorBoardLogger::log_scalar(std::string_view tag, double value, std::int64_t step) {
  namespace events = detail::tensorboard;
  write(events::record(events::scalar_event(events::now(), step, tag, value)));
}
FULMEN_INLINE void TensorBoardLogger::log_text(std::string_view tag, std::string_view text,
                                               std::int64_t step) {
  namespace events = detail::tensorboard;
  write(events::record(events::text_event(events::now(), step, tag, text)));
}
FULMEN_INLINE void TensorBoardLogger::log_image(std::string_view tag, const at::Tensor& image,
                                                std::int64_t step) {
  namespace events = detail::tensorboard;
  write(events::record(events::image_event(events::now(), step, tag, image)));
}
FULMEN_INLINE void TensorBoardLogger::log_histogram(std::string_view tag, const at::Tensor& values,
                                                    std::int64_t step) {
  namespace events = detail::tensorboard;
  write(events::record(events::histogram_event(events::now(), step, tag, values)));
}
FULMEN_INLINE void TensorBoardLogger::log_hyperparams(const State& params,
                                                      const std::optional<Metrics>& metrics) {
  namespace events = detail::tensorboard;
  Metrics shown;
  if (metrics)
    shown = *metrics;
  else if (options_.default_hp_metric)
    shown.emplace_back("hp_metric", -1);
  const double now = events::now();
  std::string records;
  for (const Metric& metric : shown)
    records += events::record(events::scalar_event(now, 0, metric.name, metric.value));
  write(records + events::hyperparameter_records(now, params, shown));
}

#endif

}  // namespace fulmen

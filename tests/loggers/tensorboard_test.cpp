// Tests TensorBoardLogger against event files of the real SummaryWriter and of Lightning (fixtures/loggers).
#include <fulmen/fulmen.hpp>
#include <fulmen/loggers/hyperparameters.hpp>
#include <fulmen/loggers/tensorboard.hpp>

#include <gtest/gtest.h>
#include <torch/torch.h>
#if FULMEN_WITH_ZLIB
#include <zlib.h>
#endif

#include <cmath>
#include <filesystem>
#include <fstream>
#include <limits>
#include <nlohmann/json.hpp>
#include <string>
#include <tuple>
#include <vector>

#include "../testing.hpp"
#include "events.hpp"

namespace {

using namespace fulmen;
using nlohmann::json;
namespace events = fulmen::detail::tensorboard;

const json& fixture() {
  static const json all = json::parse(std::ifstream(FULMEN_TEST_DATA_DIR "/loggers/loggers.json"));
  return all;
}

/// What make.py's events() logs.
std::vector<std::string> same_events(double time) {
  constexpr double inf = std::numeric_limits<double>::infinity(),
                   nan = std::numeric_limits<double>::quiet_NaN();
  std::vector<std::string> out{
      events::scalar_event(time, 0, "train/loss", 0.1),
      events::scalar_event(time, 1, "train/loss", -0.0),
      events::scalar_event(time, std::int64_t{1} << 40, "val/accuracy ü", 0.0),
      events::scalar_event(time, 3, "not a number", nan),
      events::scalar_event(time, -1, "infinite", -inf),
      events::text_event(time, 4, "notes", "**bold**, 雷\nline two"),
      events::text_event(time, 5, "empty", ""),
      events::histogram_event(time, 6, "half",
                              at::tensor({-0.5, 0.0, 0.5, 1.0, 1.0, 64.0}).view({2, 3}).to(at::kFloat)),
      events::histogram_event(time, 7, "integers", at::tensor({3, 3, 3, -1})),
      events::histogram_event(time, 8, "zero", at::zeros({4})),
  };
  const auto hyperparameters = [&](const State& params, const Metrics& metrics) {
    for (const fulmen::Metric& metric : metrics)
      out.push_back(events::scalar_event(time, 0, metric.name, metric.value));
    for (std::string& record : records_of(events::hyperparameter_records(time, params, metrics))) {
      out.push_back(std::move(record));
    }
  };
  hyperparameters(State().set("lr", 0.001), {{"hp_metric", -1}});
  hyperparameters(State().set("model", State().set("name", "résnet")), {{"val/loss", 0.25}, {"a", 0}});
  hyperparameters(State().set("zero", 0.0), {});
  hyperparameters(State().set("flag", true), {{"hp_metric", -1}});
  return out;
}

TEST(TensorBoard, EventsAreThoseOfSummaryWriterToTheByte) {
  const std::vector<std::string> theirs = records_of(contents_of(FULMEN_TEST_DATA_DIR "/loggers/events.bin"));
  const Fields version(theirs.at(0));
  const double time = version.float64(1);
  const std::vector<std::string> ours = same_events(time);
  ASSERT_EQ(ours.size(), theirs.size() - 1);
  for (std::size_t i = 0; i < ours.size(); ++i) EXPECT_EQ(ours[i], theirs[i + 1]) << "event " << i;

  const Fields own(events::version_event(time));
  EXPECT_EQ(own.float64(1), time);
  EXPECT_EQ(own.bytes(3), version.bytes(3));
  EXPECT_EQ(own.message(10).bytes(1), "fulmen");
}

TEST(TensorBoard, FramesAreThoseOfSummaryWriterToTheByte) {
  const std::string theirs = contents_of(FULMEN_TEST_DATA_DIR "/loggers/events.bin");
  std::string ours;
  for (const std::string& record : records_of(theirs)) ours += events::record(record);
  EXPECT_EQ(ours, theirs);
}

std::vector<double> doubles(const std::string& packed) {
  std::vector<double> out;
  for (std::size_t i = 0; i < packed.size(); i += 8) {
    out.push_back(std::bit_cast<double>(little_endian<std::uint64_t>(std::string_view(packed).substr(i))));
  }
  return out;
}

TEST(TensorBoard, HistogramsAreThoseOfSummaryWriter) {
  for (const auto& [name, expected] : fixture().at("histograms").items()) {
    SCOPED_TRACE(name);
    std::vector<double> values(expected.at("size").get<std::size_t>());
    for (std::size_t i = 0; i < values.size(); ++i) {
      const double x = expected.at("step").get<double>() * static_cast<double>(i);
      values[i] = expected.at("scale").get<double>() * (expected.at("offset").get<double>() + std::sin(x));
    }
    const at::Tensor tensor = at::tensor(values, at::kDouble);
    const Fields histogram =
        Fields(events::histogram_event(1, 2, name, tensor)).message(5).message(1).message(5);
    EXPECT_EQ(histogram.float64(1), expected.at("min"));
    EXPECT_EQ(histogram.float64(2), expected.at("max"));
    EXPECT_EQ(histogram.float64(3), expected.at("num"));
    const double scale = expected.at("sum_squares").get<double>();
    EXPECT_NEAR(histogram.float64(4), expected.at("sum").get<double>(),
                1e-12 * std::sqrt(scale * static_cast<double>(values.size())));
    EXPECT_NEAR(histogram.float64(5), scale, 1e-12 * scale);
    EXPECT_EQ(doubles(histogram.bytes(6)), expected.at("limits").get<std::vector<double>>());
    EXPECT_EQ(doubles(histogram.bytes(7)), expected.at("counts").get<std::vector<double>>());
  }
}

TEST(TensorBoard, HistogramOfValuesThatAreNoNumbers) {
  constexpr double nan = std::numeric_limits<double>::quiet_NaN();
  const Fields histogram =
      Fields(events::histogram_event(1, 2, "h", at::tensor({1.0, nan, 2.0}, at::kDouble)))
          .message(5)
          .message(1)
          .message(5);
  EXPECT_TRUE(std::isnan(histogram.float64(1)) && std::isnan(histogram.float64(2)) &&
              std::isnan(histogram.float64(4)));
  EXPECT_EQ(histogram.float64(3), 3);
  double counted = 0;
  for (const double count : doubles(histogram.bytes(7))) counted += count;
  EXPECT_EQ(counted, 2);
  EXPECT_EQ(error_of([&] { events::histogram_event(1, 2, "grads", at::full({5}, nan)); }).substr(0, 45),
            "histogram 'grads': none of the 5 values (min ");
  EXPECT_EQ(error_of([&] { events::histogram_event(1, 2, "h", at::empty({0})); }),
            "histogram 'h': the tensor has no elements");
}

#if FULMEN_WITH_ZLIB

struct Png {
  std::size_t width = 0, height = 0;
  int depth = 0, color_type = 0;
  std::vector<std::uint8_t> pixels;
};

/// Reads a PNG file of one IDAT whose rows have no filter, and checks its checksums.
Png read_png(const std::string& file) {
  Png png;
  EXPECT_EQ(file.substr(0, 8), "\x89PNG\r\n\x1a\n");
  const auto big_endian = [&](std::size_t at) {
    std::size_t value = 0;
    for (std::size_t i = 0; i < 4; ++i) value = value << 8 | static_cast<unsigned char>(file.at(at + i));
    return value;
  };
  std::string names;
  for (std::size_t at = 8; at < file.size();) {
    const std::size_t size = big_endian(at);
    const std::string name = file.substr(at + 4, 4), data = file.substr(at + 8, size);
    EXPECT_EQ(big_endian(at + 8 + size),
              crc32(0, reinterpret_cast<const Bytef*>(file.data()) + at + 4, static_cast<uInt>(size + 4)));
    names += name;
    if (name == "IHDR") {
      png.width = big_endian(at + 8), png.height = big_endian(at + 12);
      png.depth = data.at(8), png.color_type = data.at(9);
      EXPECT_EQ(data.substr(10), std::string(3, '\0'));
    } else if (name == "IDAT") {
      std::vector<Bytef> raw(1 << 20);
      uLongf length = raw.size();
      EXPECT_EQ(uncompress(raw.data(), &length, reinterpret_cast<const Bytef*>(data.data()), data.size()),
                Z_OK);
      const std::size_t row = length / png.height;
      for (std::size_t i = 0; i < length; ++i) {
        if (i % row == 0)
          EXPECT_EQ(raw[i], 0) << "a filter";
        else
          png.pixels.push_back(raw[i]);
      }
    }
    at += 12 + size;
  }
  EXPECT_EQ(names, "IHDRIDATIEND");
  return png;
}

TEST(TensorBoard, ImagesArePngFiles) {
  torch::manual_seed(0);
  const int color_types[] = {0, 4, 2, 6};
  for (const std::int64_t channels : {1, 2, 3, 4}) {
    const at::Tensor image = at::randint(256, {channels, 5, 7}, at::kByte);
    const Fields value = Fields(events::image_event(1, 2, "i", image)).message(5).message(1).message(4);
    EXPECT_EQ(value.integer(1), 5);
    EXPECT_EQ(value.integer(2), 7);
    EXPECT_EQ(value.integer(3), channels);
    const Png png = read_png(value.bytes(4));
    EXPECT_EQ(std::tuple(png.width, png.height, png.depth), std::tuple(std::size_t{7}, std::size_t{5}, 8));
    EXPECT_EQ(png.color_type, color_types[channels - 1]);
    const at::Tensor hwc = image.permute({1, 2, 0}).contiguous();
    const auto* pixels = hwc.const_data_ptr<std::uint8_t>();
    EXPECT_EQ(png.pixels, std::vector<std::uint8_t>(pixels, pixels + hwc.numel()));
  }
}

TEST(TensorBoard, FloatingPointImagesAreCutToBytes) {
  constexpr double nan = std::numeric_limits<double>::quiet_NaN();
  const std::vector<double> values{0, 1, 0.5, 0.999, -3, 7, nan, 1 / 255.0, 0.2};
  for (const auto dtype : {at::kFloat, at::kDouble}) {
    const at::Tensor image = at::tensor(values, at::kDouble).to(dtype).view({1, 3, 3});
    const std::string png =
        Fields(events::image_event(1, 2, "i", image)).message(5).message(1).message(4).bytes(4);
    EXPECT_EQ(read_png(png).pixels, (std::vector<std::uint8_t>{0, 255, 127, 254, 0, 255, 0, 1, 51}));
  }
}

#else

TEST(TensorBoard, ImagesNeedZlib) {
  EXPECT_EQ(error_of([] {
              events::image_event(1, 2, "x", at::zeros({1, 2, 2}));
            }),
            "image 'x': images are PNG files, and this program was built without zlib");
}

#endif

TEST(TensorBoard, WhatIsNoImageIsNamed) {
  const auto error = [](const at::Tensor& image) {
    return error_of([&] { events::image_event(1, 2, "x", image); });
  };
  const std::string expected =
      ", expected [channels, height, width] of uint8 or floating point, with 1 to 4 channels";
  EXPECT_EQ(error(at::zeros({2, 3})), "image 'x' is Float of shape [2, 3]" + expected);
  EXPECT_EQ(error(at::zeros({28, 28, 3})), "image 'x' is Float of shape [28, 28, 3]" + expected);
  EXPECT_EQ(error(at::zeros({3, 2, 2}, at::kLong)), "image 'x' is Long of shape [3, 2, 2]" + expected);
  EXPECT_EQ(error(at::Tensor()), "image 'x' is undefined of shape []" + expected);
}

/// The twin of Logging in make.py.
struct Logging : torch::nn::Module {
  torch::nn::Linear layer{register_module("layer", torch::nn::Linear(2, 1))};
  at::Tensor training_step(auto& ctx, const at::Tensor& batch, std::int64_t batch_idx) {
    const double v = 10.0 * static_cast<double>(ctx.epoch()) + static_cast<double>(batch_idx) + 0.125;
    ctx.log("train/by_step", v);
    ctx.log("train/both", v, {.on_step = true, .on_epoch = true});
    return layer(batch).square().mean();
  }
  void validation_step(Context& ctx, const at::Tensor&, std::int64_t batch_idx) {
    ctx.log("val/loss", 100.0 + 10.0 * static_cast<double>(ctx.epoch()) + static_cast<double>(batch_idx));
  }
  void test_step(Context& ctx, const at::Tensor&, std::int64_t batch_idx) {
    ctx.log("test/loss", 200.0 + static_cast<double>(batch_idx));
  }
};

template <class... L>
auto trainer_with(const std::filesystem::path& root, Runtime<std::tuple<L...>> runtime,
                  std::int64_t fast_dev_run = 0) {
  return Trainer{
      Logging{},
      fulmen::none,
      SGD{.lr = 0.0},
      fulmen::none,
      Identity{},
      callbacks(),
      Options{
          .max_epochs = 2, .fast_dev_run = fast_dev_run, .log_every_n_steps = 2, .default_root_dir = root},
      std::move(runtime)};
}

TEST(TensorBoard, LogsWhatLightningLogs) {
  const TemporaryFolder folder;
  auto trainer =
      trainer_with(folder.path, Runtime<std::tuple<TensorBoardLogger>>{.loggers = {TensorBoardLogger{}}});
  const std::vector<at::Tensor> train(4, at::ones({3, 2})), val(2, at::ones({3, 2}));
  trainer.fit(train, val);
  trainer.test(val);
  std::vector<std::tuple<std::string, std::int64_t, double>> ours, theirs;
  for (const ScalarEvent& event : scalars_of(event_file(trainer.context().run_dir()))) {
    ours.emplace_back(event.tag, event.step, event.value);
  }
  for (const json& row : fixture().at("lightning")) {
    theirs.emplace_back(row.at(0).get<std::string>(), row.at(1).get<std::int64_t>(), row.at(2).get<double>());
  }
  EXPECT_EQ(ours, theirs);
}

TEST(TensorBoard, WhatIsLoggedBeforeTheFileIsOpenIsWritten) {
  const TemporaryFolder folder;
  auto trainer =
      trainer_with(folder.path, Runtime<std::tuple<TensorBoardLogger>>{.loggers = {TensorBoardLogger{}}});
  auto& logger = std::get<0>(trainer.context().loggers());
  logger.log_hyperparams(State().set("lr", 0.5));
  logger.log_text("early", "text", 1);
  EXPECT_TRUE(logger.path().empty());
  trainer.test(std::vector<at::Tensor>(1, at::ones({3, 2})));
  EXPECT_EQ(logger.path(), event_file(trainer.context().run_dir()));
  std::vector<std::string> tags;
  for (const std::string& record : records_of(contents_of(logger.path()))) {
    tags.push_back(Fields(record).message(5).message(1).bytes(1));
  }
  EXPECT_EQ(tags, (std::vector<std::string>{"", "hp_metric", "_hparams_/experiment",
                                            "_hparams_/session_start_info", "_hparams_/session_end_info",
                                            "early/text_summary", "test/loss", "epoch"}));
}

TEST(TensorBoard, FastDevRunWritesNothing) {
  const TemporaryFolder folder;
  auto trainer =
      trainer_with(folder.path, Runtime<std::tuple<TensorBoardLogger>>{.loggers = {TensorBoardLogger{}}}, 1);
  std::get<0>(trainer.context().loggers()).log_scalar("early", 1, 0);
  trainer.fit(std::vector<at::Tensor>(4, at::ones({3, 2})));
  EXPECT_TRUE(std::filesystem::is_empty(folder.path));
}

TEST(TensorBoard, WithoutATrainer) {
  const TemporaryFolder folder;
  TensorBoardLogger logger({.default_hp_metric = false});
  logger.open(folder.path / "a" / "b");
  logger.log_scalar("x", 2.5, 7);
  logger.log_hyperparams(State().set("lr", 0.5));
  logger.flush();
  const std::vector<ScalarEvent> scalars = scalars_of(event_file(folder.path / "a" / "b"));
  ASSERT_EQ(scalars.size(), 1u);
  EXPECT_EQ(std::tuple(scalars[0].tag, scalars[0].step, scalars[0].value),
            std::tuple(std::string("x"), 7, 2.5f));
  EXPECT_EQ(records_of(contents_of(logger.path())).size(), 5u);
  EXPECT_EQ(
      error_of([&] { logger.open(folder.path); }),
      "open('" + folder.path.string() + "'): the event file is '" + logger.path().string() + "' already");
  std::ofstream(folder.path / "file") << "no folder";
  EXPECT_EQ(
      error_of([&] { TensorBoardLogger().open(folder.path / "file"); }),
      "cannot make the folder '" + (folder.path / "file").string() + "' for an event file: Not a directory");
  EXPECT_EQ(error_of([] { TensorBoardLogger({.flush_secs = 0}); }),
            "event file: interval is 0 s, expected more than 0");
}

TEST(TensorBoard, HyperparametersAreFlatAsInLightning) {
  const State params =
      State()
          .set("optimizer", State().set("lr", 1e-5).set("betas", std::vector<double>{0.9, 1}))
          .set("layers", std::vector<int>{3, 4})
          .set("names", std::vector<std::string>{"a", "b"})
          .set("nothing", std::optional<int>())
          .set("flag", false)
          .set("n", 7)
          .set("one", at::full({1}, 2.5))
          .set("weights", at::ones({2, 3}));
  std::vector<std::tuple<std::string, std::string, double>> found;
  for (const auto& param : fulmen::detail::flat_hyperparameters(params)) {
    found.emplace_back(param.name, param.text, param.number.value_or(-1));
  }
  EXPECT_EQ(found, (std::vector<std::tuple<std::string, std::string, double>>{
                       {"optimizer/lr", "1e-05", 1e-5},
                       {"optimizer/betas", "[0.9, 1.0]", -1},
                       {"layers", "[3, 4]", -1},
                       {"names", "['a', 'b']", -1},
                       {"nothing", "None", -1},
                       {"flag", "False", 0},
                       {"n", "7", 7},
                       {"one", "2.5", 2.5},
                       {"weights", "tensor of shape [2, 3]", -1}}));
}

}  // namespace

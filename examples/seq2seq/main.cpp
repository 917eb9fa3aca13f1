// Sequence to sequence: reads "Tuesday, 9 May 1995", writes "1995-05-09".
//
// A batch is a struct of one's own; BOOST_HANA_ADAPT_STRUCT tells the library its members, so that it can
// move them to a device. In training the writer is told what stands before each character (teacher forcing),
// afterwards it goes by what it wrote itself. The days of the test are none of those of the training.
//
//   cmake --preset demo && cmake --build build/demo --target seq2seq && build/demo/examples/seq2seq
#include <torch/torch.h>

#include <fulmen/fulmen.hpp>

#include <CLI/CLI.hpp>

#include <algorithm>
#include <array>
#include <chrono>
#include <cmath>
#include <cstdio>
#include <exception>
#include <iterator>
#include <string>
#include <string_view>
#include <tuple>
#include <utility>
#include <vector>

/// Rows are texts, padded at the end to the longest. S and T: the lengths of the longest.
struct Batch {
  torch::Tensor source;  ///< N×S, what is read
  torch::Tensor mask;    ///< N×S, false at padding
  torch::Tensor target;  ///< N×T, what is to be written, with an end token
};
BOOST_HANA_ADAPT_STRUCT(Batch, source, mask, target);

namespace {

namespace nn = torch::nn;

constexpr std::int64_t kPad = 0, kStart = 1, kEnd = 2, kTokens = 128;  // the others are ASCII
constexpr std::int64_t kLongestSource = 29, kLongestTarget = 11;       // with an end token

/// Texts as a matrix of tokens, each text with an end token and padded to `length`.
/// @throws std::runtime_error for a text that is too long or not ASCII
torch::Tensor encode(const std::vector<std::string>& texts, std::int64_t length) {
  torch::Tensor tokens = torch::full({static_cast<std::int64_t>(texts.size()), length}, kPad, torch::kLong);
  std::int64_t* row = tokens.mutable_data_ptr<std::int64_t>();
  for (const std::string& text : texts) {
    const bool ascii = std::all_of(text.begin(), text.end(), [](char c) { return c >= ' ' && c <= '~'; });
    if (!ascii || std::ssize(text) >= length) {
      fulmen::fail("'{}': expected a date of {} ASCII characters at the most", text, length - 1);
    }
    *std::copy(text.begin(), text.end(), row) = kEnd;
    row += length;
  }
  return tokens;
}

/// The text of one row of tokens.
std::string decode(const torch::Tensor& row) {
  std::string text;
  for (std::int64_t i = 0; i < row.size(0); ++i) {
    const auto token = row[i].item<std::int64_t>();
    if (token == kEnd) break;
    text += token > kEnd ? static_cast<char>(token) : '?';
  }
  return text;
}

/// Dates as people write them, and the same as ISO 8601.
using Texts = std::pair<std::vector<std::string>, std::vector<std::string>>;

/// Writes days, counted from 1 January 1970, each in one way or other; the last way gives only the month.
Texts write(const torch::Tensor& days) {
  static constexpr std::array months{"January", "February", "March",     "April",   "May",      "June",
                                     "July",    "August",   "September", "October", "November", "December"};
  static constexpr std::array weekdays{"Sunday",   "Monday", "Tuesday", "Wednesday",
                                       "Thursday", "Friday", "Saturday"};
  Texts texts;
  for (std::int64_t i = 0; i < days.size(0); ++i) {
    const std::chrono::sys_days day(std::chrono::days(days[i].item<int>()));
    const std::chrono::year_month_day date(day);
    const int y = static_cast<int>(date.year());
    const unsigned m = static_cast<unsigned>(date.month()), d = static_cast<unsigned>(date.day());
    const std::string_view month = months[m - 1];
    const std::array forms{
        fmt::format("{} {} {}", d, month, y),
        fmt::format("{} {}, {}", month, d, y),
        fmt::format("{}, {} {} {}", weekdays[std::chrono::weekday(day).c_encoding()], d, month, y),
        fmt::format("{}. {} {}", d, month.substr(0, 3), y),
        fmt::format("{}.{}.{}", d, m, y),
        fmt::format("{}/{}/{}", m, d, y),
        fmt::format("{} {}", month, y)};
    const auto form = torch::randint(std::ssize(forms), {1}, torch::kLong).item<std::int64_t>();
    const std::string iso = fmt::format("{}-{:02}-{:02}", y, m, d);
    texts.first.push_back(forms[static_cast<std::size_t>(form)]);
    texts.second.push_back(form + 1 == std::ssize(forms) ? iso.substr(0, 7) : iso);
  }
  return texts;
}

/// A loader: has TensorLoader gather rows, cuts off the padding that all of them have, and names the parts.
class Dates {
 public:
  Dates(const Texts& texts, fulmen::LoaderOptions options)
      : rows_({encode(texts.first, kLongestSource), encode(texts.second, kLongestTarget)}, options) {}

  struct Iterator {
    fulmen::TensorLoader<2>::Iterator rows;

    Batch operator*() const {
      const auto [source, target] = *rows;
      const torch::Tensor trimmed = source.slice(1, 0, source.ne(kPad).sum(1).max().item<std::int64_t>());
      return {trimmed, trimmed.ne(kPad), target};
    }
    Iterator& operator++() { return ++rows, *this; }
    bool operator!=(const Iterator& other) const { return rows != other.rows; }
  };
  Iterator begin() { return {rows_.begin()}; }
  Iterator end() const { return {rows_.end()}; }
  std::int64_t size() const { return rows_.size(); }

 private:
  fulmen::TensorLoader<2> rows_;
};

/// What inference_step gives back, both N×kLongestTarget: MetricMonitor looks for these names.
struct Written {
  torch::Tensor prediction, targets;
};

/// One GRU reads, another writes, with attention to what was read (Luong et al., 2015).
struct Translator : nn::Module {
  static constexpr std::int64_t hidden = 64;
  nn::Embedding embedding{register_module("embedding", nn::Embedding(kTokens, 32))};
  nn::GRU reader{register_module("reader", nn::GRU(nn::GRUOptions(32, hidden).batch_first(true)))};
  nn::GRU writer{register_module("writer", nn::GRU(nn::GRUOptions(32, hidden).batch_first(true)))};
  nn::Linear keys{register_module("keys", nn::Linear(hidden, hidden))};
  nn::Linear mix{register_module("mix", nn::Linear(2 * hidden, hidden))};
  nn::Linear out{register_module("out", nn::Linear(hidden, kTokens))};

  struct Memory {
    torch::Tensor values, keys, mask;  // N×S×H, N×S×H, N×1×S
  };
  Memory read(const Batch& batch) {
    const torch::Tensor values = std::get<0>(reader(embedding(batch.source)));
    return {values, keys(values), batch.mask.unsqueeze(1)};
  }

  /// @param tokens N×T, each the one before the one that is asked for
  /// @param state  of the writer; undefined at the start, and changed
  /// @return logits N×T×kTokens
  torch::Tensor write(const Memory& memory, const torch::Tensor& tokens, torch::Tensor& state) {
    torch::Tensor written;
    std::tie(written, state) = writer(embedding(tokens), state);
    const torch::Tensor scores = written.matmul(memory.keys.transpose(1, 2)) / std::sqrt(hidden);
    const torch::Tensor attention = scores.masked_fill(~memory.mask, -1e9).softmax(2);
    return out(torch::tanh(mix(torch::cat({written, attention.matmul(memory.values)}, 2))));
  }

  torch::Tensor training_step(auto& ctx, const Batch& batch) {
    const torch::Tensor before =
        torch::cat({torch::full_like(batch.target.slice(1, 0, 1), kStart), batch.target.slice(1, 0, -1)}, 1);
    torch::Tensor state;
    const torch::Tensor logits = write(read(batch), before, state);
    const torch::Tensor loss = ctx.criterion()(logits.flatten(0, 1), batch.target.flatten());
    ctx.log("train/loss", loss, {.prog_bar = true});
    return loss;
  }

  /// What validation, test and predict run: takes the likeliest token each time, up to the end token.
  Written inference_step(fulmen::Context& ctx, Batch& batch) {
    fulmen::move_to(batch, ctx.device());
    const Memory memory = read(batch);
    torch::Tensor token = torch::full_like(batch.source.slice(1, 0, 1), kStart);
    torch::Tensor ended = token.eq(kEnd), state;
    std::vector<torch::Tensor> tokens;
    for (std::int64_t t = 0; t < kLongestTarget; ++t) {
      token = write(memory, token, state).argmax(2).masked_fill(ended, kPad);
      ended = ended | token.eq(kEnd);
      tokens.push_back(token);
    }
    return {torch::cat(tokens, 1), batch.target};
  }
};

/// The share of texts without any mistake.
class ExactMatch {
 public:
  static constexpr std::string_view name = "exact";

  void update(const torch::Tensor& prediction, const torch::Tensor& target) {
    right_ += prediction.eq(target).all(1).sum().item<double>();
    count_ += static_cast<double>(target.size(0));
  }
  double compute() const { return right_ / count_; }
  void reset() { right_ = count_ = 0; }

 private:
  double right_ = 0, count_ = 0;
};

}  // namespace

int main(int argc, char** argv) try {
  fulmen::Options options{.max_epochs = 5, .gradient_clip_val = 1, .name = "seq2seq"};
  std::uint64_t seed = 0;
  std::vector<std::string> dates;

  CLI::App app{"Learns to write dates as ISO 8601 and shows what it makes of some that it has not seen."};
  app.set_help_flag("-h,--help", "print this help");
  app.add_option("dates", dates, "dates of your own to read, from 1900 to 2099");
  app.add_option("--epochs", options.max_epochs, "epochs of 100 batches")
      ->capture_default_str()->check(CLI::PositiveNumber);
  app.add_option("--seed", seed, "the same seed gives the same numbers")->capture_default_str();
  app.add_option("--runs", options.default_root_dir, "where the run's folder is made")->capture_default_str();
  CLI11_PARSE(app, argc, argv);

  at::set_num_threads(1);  // so small a network is no work for two
  fulmen::seed_everything(seed);
  Dates own({dates, std::vector<std::string>(dates.size())}, {.batch_size = 1000});
  const torch::Tensor days = torch::randperm(73049) - 25567;  // 1900 to 2099, in any order
  const Texts unseen = write(days.slice(0, 3600, 4100));
  Dates train(write(days.slice(0, 0, 3200)), {.batch_size = 32, .shuffle = true});
  Dates val(write(days.slice(0, 3200, 3600)), {.batch_size = 100}), test(unseen, {.batch_size = 100});

  fulmen::Trainer trainer{Translator{},
                          fulmen::CrossEntropy{.ignore_index = kPad},
                          fulmen::Adam{.lr = 5e-3},
                          fulmen::none,
                          fulmen::Identity{},
                          fulmen::callbacks(fulmen::MetricMonitor{ExactMatch{}}),
                          options};
  trainer.fit(train, val);
  const double exact = trainer.test(test).front().value;

  const auto show = [](const std::string& text, const torch::Tensor& row) {
    std::printf("%-28s → %s\n", text.c_str(), decode(row).c_str());
  };
  const torch::Tensor written = trainer.predict(test).front().prediction;
  for (std::int64_t i = 0; i < 8; ++i) show(unseen.first[static_cast<std::size_t>(i)], written[i]);
  if (!dates.empty()) {
    const torch::Tensor answers = trainer.predict(own).front().prediction;
    for (std::size_t i = 0; i < dates.size(); ++i) show(dates[i], answers[static_cast<std::int64_t>(i)]);
  }
  std::printf("\n%.1f %% of %td dates of days not seen in training are right to the last character\n",
              100 * exact, std::ssize(unseen.first));
} catch (const std::exception& error) {
  std::fprintf(stderr, "seq2seq: %s\n", error.what());
  return 1;
}

// Tests of the IDX reader: every element type there and back, every error with its message, and damaged
// files.
#include <ATen/ops/arange.h>
#include <ATen/ops/equal.h>
#include <fulmen/data/idx.hpp>
#include <gtest/gtest.h>

#include <filesystem>
#include <fstream>
#include <random>
#include <string>
#include <vector>

#if FULMEN_WITH_ZLIB
#include <zlib.h>
#endif

namespace {

namespace fs = std::filesystem;
using ::fulmen::find_idx;
using ::fulmen::read_idx;

std::string big_endian(std::uint64_t value, int bytes) {
  std::string text;
  for (int shift = 8 * (bytes - 1); shift >= 0; shift -= 8) text += static_cast<char>(value >> shift & 0xff);
  return text;
}

std::string header(int type, const std::vector<std::uint32_t>& shape) {
  std::string text{'\0', '\0', static_cast<char>(type), static_cast<char>(shape.size())};
  for (const std::uint32_t size : shape) text += big_endian(size, 4);
  return text;
}

std::string bytes_of(std::size_t count) {
  std::string text(count, '\0');
  for (std::size_t i = 0; i < count; ++i) text[i] = static_cast<char>(i * 37 + i / 256);
  return text;
}

// An IDX file of `array`, written without any of the reader's code.
std::string idx_of(const at::Tensor& array, int type) {
  std::string text = header(type, {array.sizes().begin(), array.sizes().end()});
  const at::Tensor flat = array.contiguous();
  const auto size = static_cast<std::size_t>(flat.element_size());
  const char* data = static_cast<const char*>(flat.const_data_ptr());
  for (std::int64_t i = 0; i < flat.numel(); ++i, data += size) {
    std::string one(data, size);
    if (std::endian::native == std::endian::little) std::reverse(one.begin(), one.end());
    text += one;
  }
  return text;
}

#if FULMEN_WITH_ZLIB
std::string gzip(const std::string& content) {
  z_stream stream{};
  EXPECT_EQ(deflateInit2(&stream, 6, Z_DEFLATED, 15 + 16, 8, Z_DEFAULT_STRATEGY), Z_OK);
  std::string out(deflateBound(&stream, content.size()) + 64, '\0');
  stream.next_in = reinterpret_cast<unsigned char*>(const_cast<char*>(content.data()));
  stream.avail_in = static_cast<uInt>(content.size());
  stream.next_out = reinterpret_cast<unsigned char*>(out.data());
  stream.avail_out = static_cast<uInt>(out.size());
  EXPECT_EQ(deflate(&stream, Z_FINISH), Z_STREAM_END);
  out.resize(stream.total_out);
  deflateEnd(&stream);
  return out;
}
#endif

class Idx : public testing::Test {
 protected:
  void SetUp() override {
    const auto* test = testing::UnitTest::GetInstance()->current_test_info();
    folder = fs::temp_directory_path() /
             ("fulmen_idx_" + std::string(test->name()) + "_" + std::to_string(std::random_device{}()));
    fs::create_directories(folder);
  }
  void TearDown() override {
    std::error_code ignored;
    fs::remove_all(folder, ignored);
  }

  fs::path write(const std::string& content, const std::string& name = "file") const {
    fs::remove(folder / name);  // truncated instead, some file systems flush it to the disk when it is closed
    std::ofstream out(folder / name, std::ios::binary);
    out.write(content.data(), static_cast<std::streamsize>(content.size()));
    return folder / name;
  }

  // Reading `file` fails with one line that names the file and has each of `parts` in it.
  void expect_error(const fs::path& file, const std::vector<std::string>& parts) const {
    try {
      read_idx(file);
    } catch (const std::runtime_error& error) {
      const std::string text = error.what();
      EXPECT_NE(text.find("'" + file.string() + "'"), std::string::npos) << text;
      EXPECT_EQ(text.find('\n'), std::string::npos) << text;
      for (const std::string& part : parts)
        EXPECT_NE(text.find(part), std::string::npos) << text << "\nlacks: " << part;
      return;
    }
    ADD_FAILURE() << "no error for " << file;
  }

  fs::path folder;
};

TEST_F(Idx, ReadsImagesAndLabels) {
  const std::string pixels = bytes_of(3 * 28 * 28);
  const at::Tensor images = read_idx(write(header(0x08, {3, 28, 28}) + pixels));
  ASSERT_EQ(images.sizes(), (std::vector<std::int64_t>{3, 28, 28}));
  EXPECT_EQ(images.scalar_type(), at::kByte);
  EXPECT_TRUE(images.is_contiguous());
  EXPECT_TRUE(images.device().is_cpu());
  EXPECT_EQ(std::memcmp(images.const_data_ptr(), pixels.data(), pixels.size()), 0);

  const at::Tensor labels = read_idx(write(header(0x08, {5}) + std::string("\7\2\1\0\4", 5)));
  ASSERT_EQ(labels.sizes(), std::vector<std::int64_t>{5});
  EXPECT_EQ(labels[0].item<int>(), 7);
  EXPECT_EQ(labels[4].item<int>(), 4);
}

TEST_F(Idx, RoundTripOfEveryTypeAndRank) {
  const std::vector<std::pair<int, at::ScalarType>> types{{0x08, at::kByte},  {0x09, at::kChar},
                                                          {0x0B, at::kShort}, {0x0C, at::kInt},
                                                          {0x0D, at::kFloat}, {0x0E, at::kDouble}};
  const std::vector<std::vector<std::int64_t>> shapes{{},        {1},    {7},       {0},
                                                      {3, 0, 5}, {2, 3}, {4, 5, 6}, {2, 1, 3, 2, 1}};
  for (const auto& [code, dtype] : types) {
    for (const auto& shape : shapes) {
      const at::Tensor array = [&, dtype = dtype] {
        std::int64_t count = 1;
        for (const auto size : shape) count *= size;
        at::Tensor values = at::arange(count, at::kDouble).mul(dtype == at::kByte ? 1.0 : -1.0);
        if (dtype == at::kFloat || dtype == at::kDouble) values = values.div(3);
        if (dtype == at::kShort || dtype == at::kInt) values = values.mul(273);
        return values.to(dtype).reshape(shape);
      }();
      const std::string content = idx_of(array, code);
      std::vector<fs::path> files{write(content)};
#if FULMEN_WITH_ZLIB
      files.push_back(write(gzip(content), "file.gz"));
#endif
      for (const fs::path& file : files) {
        const at::Tensor read = read_idx(file);
        EXPECT_EQ(read.scalar_type(), dtype);
        EXPECT_EQ(read.sizes(), array.sizes());
        EXPECT_TRUE(at::equal(read, array)) << dtype << " " << array.sizes();
      }
    }
  }
}

TEST_F(Idx, KnownBytesOfWiderTypes) {
  EXPECT_EQ(read_idx(write(header(0x0B, {1}) + std::string("\xff\xfe", 2))).item<int>(), -2);
  EXPECT_EQ(read_idx(write(header(0x0C, {1}) + std::string("\x01\x02\x03\x04", 4))).item<int>(), 0x01020304);
  EXPECT_EQ(read_idx(write(header(0x0D, {1}) + std::string("\x3f\xc0\x00\x00", 4))).item<float>(), 1.5F);
  EXPECT_EQ(read_idx(write(header(0x0E, {1}) + std::string("\xc0\x04\0\0\0\0\0\0", 8))).item<double>(), -2.5);
}

TEST_F(Idx, TheHighestRank) {
  const at::Tensor array = read_idx(write(header(0x08, std::vector<std::uint32_t>(255, 1)) + "\x09"));
  EXPECT_EQ(array.dim(), 255);
  EXPECT_EQ(array.numel(), 1);
}

TEST_F(Idx, MissingFile) { expect_error(folder / "nowhere", {"no such file"}); }

TEST_F(Idx, Directory) { expect_error(folder, {"is a directory"}); }

TEST_F(Idx, EmptyFile) { expect_error(write(""), {"is empty (0 bytes)", "expected an IDX header"}); }

TEST_F(Idx, WrongMagic) {
  expect_error(write("\x89PNG\r\n\x1a\n"), {"wrong magic number: found 89 50 4e 47", "expected 00 00"});
}

TEST_F(Idx, UnknownType) {
  expect_error(write(header(0x0A, {1}) + "x"),
               {"unknown element type: found 0a", "08 (uint8)", "0e (float64)"});
}

TEST_F(Idx, TruncatedHeader) {
  expect_error(write(std::string(3, '\0')), {"truncated header: found 3 bytes, expected at least 4"});
  expect_error(write(header(0x08, {3, 28, 28}).substr(0, 9)),
               {"truncated header: found 9 bytes, expected 16 for rank 3"});
}

TEST_F(Idx, TruncatedBody) {
  expect_error(write(header(0x0C, {2, 3}) + bytes_of(23)),
               {"truncated body: found 23 bytes", "expected 24 for int32 [2, 3]"});
}

TEST_F(Idx, TrailingBytes) {
  expect_error(write(header(0x08, {2, 3}) + bytes_of(8)),
               {"trailing bytes: found 8 bytes", "expected 6 for uint8 [2, 3]"});
  expect_error(write(header(0x08, {0}) + bytes_of(1)),
               {"trailing bytes: found 1 bytes", "expected 0 for uint8 [0]"});
}

TEST_F(Idx, AbsurdDimensions) {
  const std::uint32_t most = 0xffffffff;
  expect_error(write(header(0x08, {most, most, most}) + bytes_of(8)),
               {"absurd dimensions: found uint8 [4294967295, 4294967295, 4294967295]", "less than 2^63"});
  expect_error(write(header(0x0E, {0x80000000, 0x20000000}) + bytes_of(8)), {"absurd dimensions"});
  expect_error(write(header(0x08, {0, most, most})), {"absurd dimensions"});
  // It could be, but not in a file of this size: memory of 2^62 bytes is not even asked for.
  expect_error(
      write(header(0x08, {0x80000000, 0x80000000}) + bytes_of(8)),
      {"truncated body: found 8 bytes", "expected 4611686018427387904 for uint8 [2147483648, 2147483648]"});
}

#if FULMEN_WITH_ZLIB

TEST_F(Idx, GzipIsKnownByContentNotByName) {
  const std::string content = header(0x08, {4, 100}) + bytes_of(400);
  const at::Tensor array = read_idx(write(content, "plain-idx2-ubyte.gz"));
  EXPECT_TRUE(at::equal(array, read_idx(write(gzip(content), "packed-idx2-ubyte"))));
}

TEST_F(Idx, LargeGzip) {  // several pieces and several fillings of the buffer
  std::mt19937 random{1};
  std::string body(3'000'001, '\0');
  for (char& byte : body) byte = static_cast<char>(random());
  const at::Tensor array = read_idx(write(gzip(header(0x09, {3'000'001}) + body)));
  ASSERT_EQ(array.numel(), 3'000'001);
  EXPECT_EQ(std::memcmp(array.const_data_ptr(), body.data(), body.size()), 0);
}

TEST_F(Idx, GzipOfSeveralMembers) {
  const std::string content = header(0x08, {2, 300}) + bytes_of(600);
  for (const std::size_t cut : {0, 3, 12, 300, 612}) {
    const at::Tensor array = read_idx(write(gzip(content.substr(0, cut)) + gzip(content.substr(cut))));
    EXPECT_EQ(std::memcmp(array.const_data_ptr(), content.data() + 12, 600), 0);
  }
}

TEST_F(Idx, GzipErrors) {
  const std::string content = header(0x08, {3, 200}) + bytes_of(600);
  const std::string packed = gzip(content);
  expect_error(write(gzip("")), {"its gzip content is empty (0 bytes)"});
  expect_error(write(gzip("PNG....")), {"wrong magic number: found 50 4e 47 2e"});
  expect_error(write(gzip(content.substr(0, 10))),
               {"truncated header: found 10 bytes, expected 12 for rank 2"});
  expect_error(write(gzip(content.substr(0, 100))),
               {"truncated body: found 88 bytes", "expected 600 for uint8 [3, 200]"});
  expect_error(write(gzip(content + "x")), {"trailing bytes: found 601 or more bytes", "expected 600"});
  expect_error(write(packed + "more"), {"trailing bytes after the gzip stream: found 6d"});
  expect_error(write(packed.substr(0, packed.size() / 2)),
               {"truncated gzip stream", "expected the stream's end"});
  expect_error(write(packed.substr(0, packed.size() - 1)),
               {"truncated gzip stream: the file ends after 612"});
  expect_error(write(packed.substr(0, 2)), {"truncated gzip stream: the file ends after 0"});

  std::string damaged = packed;
  damaged[damaged.size() - 8] ^= 1;  // the CRC stands in the eight bytes at the end, before the length
  expect_error(write(damaged), {"corrupt gzip stream", "incorrect data check", "after 612 inflated bytes"});
  damaged = packed;
  damaged[damaged.size() - 1] ^= 1;
  expect_error(write(damaged), {"corrupt gzip stream", "incorrect length check"});
  // An array of no elements has its CRC looked at as well.
  damaged = gzip(header(0x08, {0}));
  damaged[damaged.size() - 5] ^= 1;
  expect_error(write(damaged), {"corrupt gzip stream", "incorrect data check"});
}

TEST_F(Idx, GzipCannotMakeUsAllocate) {
  expect_error(write(gzip(header(0x0E, {0xffffffff, 0x0fffffff}) + bytes_of(100))),
               {"truncated body: found 100 bytes", "expected 9223372"});
  expect_error(write(gzip(header(0x08, {0xffffffff, 0xffffffff, 2}))), {"absurd dimensions"});
}

#else

TEST_F(Idx, GzipWithoutZlib) {
  expect_error(write(std::string("\x1f\x8b\x08\0", 4)), {"is gzip", "gunzip the file, or build with zlib"});
}

#endif

// Whatever the damage: an array or a std::runtime_error of one line, never anything else.
TEST_F(Idx, DamagedFilesNeverCrash) {
  std::mt19937 random{7};
  std::vector<std::string> originals{header(0x08, {5, 4, 3}) + bytes_of(60),
                                     header(0x0E, {3, 2}) + bytes_of(48)};
#if FULMEN_WITH_ZLIB
  originals.push_back(gzip(originals[0]));
  originals.push_back(gzip(header(0x0B, {500}) + bytes_of(1000)));
#endif
  int errors = 0, arrays = 0;
  const auto attempt = [&](const std::string& content) {
    const fs::path file = write(content);
    try {
      const at::Tensor array = read_idx(file);
      ASSERT_TRUE(array.defined());
      ++arrays;
    } catch (const std::runtime_error& error) {
      ASSERT_EQ(std::string(error.what()).find("fulmen::read_idx: '" + file.string() + "': "), 0U);
      ++errors;
    }
  };
  for (const std::string& original : originals) {
    for (std::size_t size = 0; size < original.size(); ++size) attempt(original.substr(0, size));
    EXPECT_EQ(arrays, 0) << "a truncated file was read";
    for (int round = 0; round < 500; ++round) {
      std::string damaged = original;
      for (std::uint32_t flips = 1 + random() % 4; flips != 0; --flips) {
        damaged[random() % damaged.size()] ^= static_cast<char>(1 << random() % 8);
      }
      if (random() % 4 == 0) damaged.resize(random() % (2 * damaged.size()));
      attempt(damaged);
    }
    arrays = 0;
  }
  EXPECT_GT(errors, 500);
}

TEST_F(Idx, FindsEverySpelling) {
  for (const std::string name : {"train-images-idx3-ubyte", "train-images.idx3-ubyte",
                                 "train-images-idx3-ubyte.gz", "train-images.idx3-ubyte.gz"}) {
    const fs::path file = write("x", name);
    for (const char* stem : {"train-images-idx3-ubyte", "train-images.idx3-ubyte", "train-images",
                             "train-images-idx3-ubyte.gz"}) {
      EXPECT_EQ(find_idx(folder, stem), file) << stem;
    }
    fs::remove(file);
  }
  // Some archives unpack into a folder of the file's own name.
  fs::create_directory(folder / "train-images-idx3-ubyte");
  const fs::path file = write("x", "train-images.idx3-ubyte");
  EXPECT_EQ(find_idx(folder, "train-images-idx3-ubyte"), file);
  EXPECT_EQ(find_idx(folder, "train-images"), file);
}

TEST_F(Idx, PrefersThePlainFile) {
  write("x", "train-labels-idx1-ubyte.gz");
  write("x", "train-labels.idx1-ubyte");
  EXPECT_EQ(find_idx(folder, "train-labels-idx1-ubyte").filename(), "train-labels.idx1-ubyte");
  EXPECT_EQ(find_idx(folder, "train-labels").filename(), "train-labels.idx1-ubyte");
}

TEST_F(Idx, FindErrors) {
  const auto message = [](const fs::path& where, const char* stem) -> std::string {
    try {
      return "found " + find_idx(where, stem).string();
    } catch (const std::runtime_error& error) {
      return error.what();
    }
  };
  const std::string start = "fulmen::find_idx: '" + folder.string() + "': ";
  EXPECT_EQ(message(folder, "t10k-images-idx3-ubyte"),
            start +
                "no such IDX file, looked for t10k-images-idx3-ubyte, t10k-images.idx3-ubyte, "
                "t10k-images-idx3-ubyte.gz, t10k-images.idx3-ubyte.gz");
  EXPECT_EQ(
      message(folder, "t10k-images"),
      start +
          "no such IDX file, looked for t10k-images-idx<rank>-<type>, t10k-images.idx<rank>-<type>, either "
          "with .gz");
  write("x", "t10k-images-idx3-ubyte");
  write("x", "t10k-images-idx4-ubyte.gz");
  EXPECT_EQ(message(folder, "t10k-images"), start +
                                                "'t10k-images' fits both t10k-images-idx3-ubyte and "
                                                "t10k-images-idx4-ubyte.gz: give the whole name");
  EXPECT_NE(message(folder, "t10k").find("no such IDX file"), std::string::npos);
  EXPECT_NE(message(folder / "nowhere", "x").find("no such directory"), std::string::npos);
  EXPECT_NE(message(folder / "t10k-images-idx3-ubyte", "x").find("is not a directory"), std::string::npos);
}

#ifdef FULMEN_TEST_DATA_DIR  // the folder tests/fixtures
TEST(Digits, AreThere) {
  const fs::path digits = fs::path{FULMEN_TEST_DATA_DIR}.parent_path().parent_path() / "examples/digits/data";
  const at::Tensor images = read_idx(find_idx(digits, "digits-images"));
  const at::Tensor labels = read_idx(find_idx(digits, "digits-labels"));
  EXPECT_EQ(images.sizes(), (std::vector<std::int64_t>{1797, 8, 8}));
  EXPECT_EQ(labels.sizes(), std::vector<std::int64_t>{1797});
  EXPECT_EQ(images.max().item<int>(), 16);
  EXPECT_EQ(images.sum().item<std::int64_t>(), 561718);
  EXPECT_EQ(labels.sum().item<std::int64_t>(), 8070);
}
#endif

}  // namespace

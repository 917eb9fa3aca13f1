// Damaged and malicious checkpoints: reading one gives an error of one line or the content that was written,
// and never a crash. Meant to be run under -fsanitize=address,undefined too.
#include <fulmen/checkpoint/archive.hpp>
#include <fulmen/checkpoint/atomic_file.hpp>
#include <fulmen/checkpoint/state.hpp>
#include <fulmen/checkpoint/zip.hpp>

#include <gtest/gtest.h>
#include <torch/torch.h>

#include <cstdint>
#include <cstdlib>
#include <random>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#include "testing.hpp"

namespace fulmen {
namespace {

using ::fulmen::testing::contents;
using ::fulmen::testing::fixture;
using ::fulmen::testing::put;
using ::fulmen::testing::same;
using ::fulmen::testing::TemporaryFolder;

c10::IValue small_value() {
  const at::Tensor base = at::arange(6).to(at::kFloat);
  State state;
  state.set("w", base.view({2, 3})).set("row", base.slice(0, 3, 6)).set("h", at::ones(3, at::kHalf));
  state.set("u", at::ones(2).to(at::kUInt16)).set("lr", 0.1).set("step", std::int64_t{1} << 40);
  state.set("name", "run").set("bytes", std::string("\xff\xfe")).set("ids", std::vector<int>{1, 2, 3});
  state.set("nested", State().set("none", c10::IValue()).set("device", c10::IValue(c10::Device("cpu"))));
  state.set("pair", c10::IValue(c10::ivalue::Tuple::create({c10::IValue(1.5), c10::IValue(true)})));
  return state;
}

// Rounds of the random tests; FULMEN_DAMAGE_ROUNDS=100 makes them a hundred times as many.
int rounds(int count) {
  const char* factor = std::getenv("FULMEN_DAMAGE_ROUNDS");
  return factor == nullptr ? count : count * std::atoi(factor);
}

class Damage : public ::testing::Test {
 protected:
  // Reads the bytes as a checkpoint. Nothing but std::runtime_error of one line that names the file may come
  // out. Gives whether there was an error; `value` is what was read if there was none.
  bool fails(std::string_view bytes, c10::IValue& value) {
    put(file, bytes);
    try {
      value = checkpoint::read(file);
      return false;
    } catch (const std::runtime_error& error) {
      const std::string text = error.what();
      EXPECT_EQ(text.find("cannot read checkpoint '" + file.string() + "': "), 0u) << text;
      EXPECT_EQ(text.find('\n'), std::string::npos) << text;
      EXPECT_LT(text.size(), file.string().size() + 400) << text;
      return true;
    }
  }

  // Looks at every element of what was read, so that a sanitizer sees one out of bounds.
  static void touch(const c10::IValue& value, int depth = 0) {
    if (value.isTensor()) {
      const at::Tensor tensor = value.toTensor();
      if (tensor.numel() < 100'000 && c10::isFloatingType(tensor.scalar_type()) &&
          tensor.element_size() >= 2) {
        tensor.detach().to(at::kFloat).sum();
      }
    } else if (value.isGenericDict()) {
      for (const auto& entry : value.toGenericDict()) touch(entry.value(), depth + 1);
    } else if (value.isList()) {
      for (const c10::IValue& item : value.toListRef()) touch(item, depth + 1);
    }
  }

  // The file with another pickle, its CRC right: what lies behind the zip layer.
  void put_pickle(const std::string& pickle) {
    checkpoint::AtomicFile out(file);
    checkpoint::detail::ZipWriter zip(out, "x");
    zip.add("data.pkl", pickle);
    zip.add("data/0", std::string(24, '\1'));
    zip.add("data/1", std::string(6, '\2'));
    zip.add("data/2", std::string(4, '\3'));
    zip.finish();
    out.commit();
  }

  // The error of reading a pickle, without the file's name; empty if it was read.
  std::string pickle_error(const std::string& pickle) {
    put_pickle("\x80\x02" + pickle + ".");
    return fulmen::testing::error_of<std::runtime_error>([&] { touch(checkpoint::read(file)); });
  }

  TemporaryFolder folder = TemporaryFolder::in_memory();
  std::filesystem::path file = folder / "damaged.pt";
};

TEST_F(Damage, TruncatedAtEveryLength) {
  checkpoint::write(folder / "whole.pt", small_value());
  const std::string whole = contents(folder / "whole.pt");
  c10::IValue value;
  for (std::size_t size = 0; size < whole.size(); ++size)
    ASSERT_TRUE(fails(whole.substr(0, size), value)) << size;
  EXPECT_FALSE(fails(whole, value));
}

TEST_F(Damage, EveryBitFlipIsFoundOrHarmless) {
  checkpoint::write(folder / "whole.pt", small_value());
  const std::string whole = contents(folder / "whole.pt");
  const c10::IValue expected = checkpoint::read(folder / "whole.pt");
  c10::IValue value;
  std::size_t found = 0;
  // A bit of every third place in a file of a few kilobytes; then several bytes at once.
  for (std::size_t bit = 0; bit < whole.size() * 8; bit += 3) {
    std::string damaged = whole;
    damaged[bit / 8] = static_cast<char>(damaged[bit / 8] ^ 1 << bit % 8);
    if (fails(damaged, value)) {
      ++found;
    } else {
      ASSERT_TRUE(same(value, expected)) << "bit " << bit;
    }
  }
  EXPECT_GT(found, whole.size());
  std::mt19937 random(0);
  for (int i = 0; i < rounds(1000); ++i) {
    std::string damaged = whole;
    for (int k = 0; k < 1 + i % 8; ++k) damaged[random() % damaged.size()] = static_cast<char>(random());
    if (!fails(damaged, value)) {
      ASSERT_TRUE(same(value, expected)) << i;
    }
  }
}

TEST_F(Damage, BitFlipsInPythonsFiles) {
  std::mt19937 random(1);
  c10::IValue value;
  for (const char* name : {"values.pt", "protocol5.pt", "model.pt"}) {
    const std::string whole = contents(fixture(name));
    const c10::IValue expected = checkpoint::read(fixture(name));
    for (int i = 0; i < rounds(1500); ++i) {
      std::string damaged = whole;
      const auto bit = random() % (whole.size() * 8);
      damaged[bit / 8] = static_cast<char>(damaged[bit / 8] ^ 1 << bit % 8);
      if (!fails(damaged, value)) {
        ASSERT_TRUE(same(value, expected)) << name << " bit " << bit;
      }
    }
    for (std::size_t size = 0; size < whole.size(); size += 1 + random() % 64) {
      ASSERT_TRUE(fails(whole.substr(0, size), value)) << name << " " << size;
    }
  }
}

// The CRC catches damage to the pickle before the pickle machine sees it. Here it sees it.
TEST_F(Damage, DamagedPicklesWithRightCrcs) {
  std::vector<std::string> pickles;
  {
    checkpoint::write(folder / "whole.pt", small_value());
    for (const auto& path :
         {folder / "whole.pt", fixture("values.pt"), fixture("protocol4.pt"), fixture("protocol5.pt")}) {
      const checkpoint::detail::InputFile input(path);
      pickles.push_back(checkpoint::detail::ZipReader(input).read("data.pkl"));
    }
  }
  std::mt19937 random(2);
  c10::IValue value;
  std::size_t read = 0;
  for (int i = 0; i < rounds(10'000); ++i) {
    std::string pickle = pickles[static_cast<std::size_t>(i) % pickles.size()];
    for (int k = 0; k < 1 + i / 4 % 4; ++k) {
      const std::size_t at = random() % pickle.size();
      switch (random() % 4) {
        case 0:
          pickle[at] = static_cast<char>(pickle[at] ^ 1 << random() % 8);
          break;
        case 1:
          pickle[at] = "().0125tu}]esabRQq\x85\x86\x87\x94Nhj\x81"[random() % 27];
          break;
        case 2:
          pickle.erase(at, 1 + random() % 4);
          break;
        default:
          pickle.insert(at, pickle.substr(random() % pickle.size(), random() % 16));
          break;
      }
      if (pickle.empty()) pickle = ".";
    }
    put_pickle(pickle);
    if (!fails(contents(file), value)) {
      ++read;
      touch(value);
    }
  }
  EXPECT_GT(read, 0u);
}

TEST_F(Damage, PicklesOfNoise) {
  std::mt19937 random(3);
  c10::IValue value;
  for (int i = 0; i < rounds(5000); ++i) {
    std::string pickle(random() % 64, '\0');
    for (char& c : pickle)
      c = "().0125tu}]esabRQqcXKMJN\x85\x86\x87\x88\x89\x8a\x94hj\x81\x8c\n\0\1\2\3"[random() % 41];
    put_pickle(pickle + ".");
    if (!fails(contents(file), value)) touch(value);
  }
}

TEST_F(Damage, TensorsThatReachBeyondTheirStorage) {
  const auto tensor = [](std::string_view offset, std::string_view sizes, std::string_view strides) {
    return "ctorch._utils\n_rebuild_tensor_v2\n((X\x07" + std::string(3, '\0') +
           "storagectorch\nFloatStorage\nX\x01" + std::string(3, '\0') + "0X\x03" + std::string(3, '\0') +
           "cpuK\x06tQ" + std::string(offset) + std::string(sizes) + std::string(strides) + "\x89" +
           "ccollections\nOrderedDict\n)RtR";
  };
  const std::string huge = "\x8a\x08" + std::string(7, '\xff') + "\x7f";  // 2^63 - 1
  const std::string zero = std::string("K\0", 2);
  EXPECT_EQ(pickle_error(tensor(zero, "K\x06\x85", "K\x01\x85")), "");
  EXPECT_EQ(pickle_error(tensor("K\x05", "K\x01\x85", "K\x01\x85")), "");
  EXPECT_EQ(pickle_error(tensor(huge, zero + "\x85", huge + "\x85")), "");  // no element: reaches nowhere
  const std::vector<std::string> bad = {
      tensor(zero, "K\x07\x85", "K\x01\x85"),
      tensor("K\x06", "K\x01\x85", "K\x01\x85"),
      tensor("J\xff\xff\xff\xff", "K\x01\x85", "K\x01\x85"),
      tensor(zero, "K\x02\x85", "K\x06\x85"),
      tensor(zero, "K\x02\x85", "J\xff\xff\xff\xff\x85"),
      tensor(zero, "J\xff\xff\xff\xff\x85", "K\x01\x85"),
      tensor(huge, "K\x01\x85", "K\x01\x85"),
      tensor("K\x01", huge + "\x85", "K\x01\x85"),
      tensor(zero, "K\x03\x85", huge + "\x85"),
      tensor(zero, huge + huge + "\x86", zero + zero + "\x86"),
      tensor(zero, huge + "\x85", zero + "\x85"),
  };
  for (const std::string& pickle : bad) {
    EXPECT_NE(pickle_error(pickle).find("reaches beyond its storage of 24 bytes"), std::string::npos)
        << pickle_error(pickle);
  }
  EXPECT_NE(pickle_error(tensor(zero, "K\x06\x85", ")")).find("reaches beyond"), std::string::npos);
}

TEST_F(Damage, PicklesThatTryToBeLarge) {
  // A million lists, each in the next: neither the reader nor a destructor may recurse over them.
  EXPECT_NE(
      pickle_error(std::string(1'000'000, ']') + std::string(999'999, 'a')).find("nested more than 500 deep"),
      std::string::npos);
  // The same, unfinished; and as tuples.
  EXPECT_NE(pickle_error(")" + std::string(1'000'000, '\x85')).find("nested more than 500 deep"),
            std::string::npos);
  EXPECT_EQ(pickle_error(std::string(1'000'000, ']')), "");
  // In portions of 400, each of which ends in the one before it: shallow as they are read, deep as they are
  // destroyed.
  std::string portions = "]";
  for (int i = 0; i < 2000; ++i) {
    portions += i == 0 ? "]" : std::string("h\0", 2);
    portions += std::string(400, '\x85') + std::string("q\0", 2);
  }
  EXPECT_NE(pickle_error("(" + portions + "t").find("nested more than 500 deep"), std::string::npos);
  // A list that contains itself, through the memo.
  EXPECT_NE(pickle_error(std::string("]q\0h\0a", 6)).find("contains itself"), std::string::npos);
  // A billion laughs: each tuple holds the one before it twice. As values they are shared, so that this is
  // small.
  EXPECT_EQ(pickle_error(std::string("]") +
                         [] {
                           std::string text;
                           for (int i = 0; i < 400; ++i) text += "2\x86";
                           return text;
                         }()),
            "");
  // A long string, encoded again and again.
  std::string encode = "c_codecs\nencode\nq" + std::string(1, '\0') + "X" + std::string("\0\0\1\0", 4) +
                       std::string(0x10000, 'a') + "q\1X\6" + std::string(3, '\0') + "latin1q\2";
  for (int i = 0; i < 10'000; ++i) encode += std::string("h\0h\1h\2\x86R", 8);
  EXPECT_NE(pickle_error(encode), "");
  // Lengths far beyond the file.
  EXPECT_NE(pickle_error("X\xff\xff\xff\xff"), "");
  EXPECT_NE(pickle_error("\x8d" + std::string(8, '\xff')), "");
  EXPECT_NE(pickle_error("\x8b\xff\xff\xff\xff"), "");
}

TEST_F(Damage, NothingIsCalled) {
  EXPECT_NE(pickle_error(std::string("cos\nsystem\nX\4\0\0\0true\x85R", 23))
                .find("holds a os.system, which is not supported"),
            std::string::npos);
  EXPECT_NE(pickle_error("cos\nsystem\n").find("holds a reference to os.system"), std::string::npos);
}

// Zip directories whose records overlap would let a small file ask for much memory.
TEST_F(Damage, RecordsThatOverlap) {
  checkpoint::write(folder / "whole.pt", at::zeros({1000}));
  std::string bytes = contents(folder / "whole.pt");
  // The directory's entry of byteorder gets the size of data/0.
  std::size_t entry = bytes.rfind("whole/byteorder") - 46;
  for (const std::size_t field : {20, 24}) bytes.replace(entry + field, 4, std::string("\xa0\x0f\0\0", 4));
  c10::IValue value;
  EXPECT_TRUE(fails(bytes, value));
}

}  // namespace
}  // namespace fulmen

// The matrix unit of newer x86 processors (AMX): eight tiles of 16 rows of 64 bytes a thread, multiplied and summed as matrices.
#if defined(__AMX_BF16__) && defined(__AMX_INT8__) && defined(__AVX512BF16__)
#define HAS_TILES

#include <immintrin.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <cstdint>

namespace {

constexpr long EDGE = 16;  // rows of a tile
bool tiles_allowed = false;

struct alignas(64) TileShapes {
    uint8_t palette = 1, start = 0, reserved[14] = {};
    uint16_t bytes[16] = {};
    uint8_t rows[16] = {};
    TileShapes() {
        for (int tile = 0; tile < 8; ++tile) bytes[tile] = 64, rows[tile] = EDGE;
    }
};

// The tiles of this thread, for as long as it lives.
struct Tiles {
    Tiles() {
        const TileShapes shapes;
        asm volatile("" : : "m"(shapes));  // the instruction below doesn't tell the compiler what it reads
        _tile_loadconfig(&shapes);
    }
    ~Tiles() { _tile_release(); }
};

}  // namespace
#endif

// Whether the unit is used from now on, if that is wanted: the system must let the process.
extern "C" int glm_use_tiles(int wanted) {
#ifdef HAS_TILES
    constexpr long REQUEST = 0x1023, TILE_DATA = 18;  // ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA
    tiles_allowed = wanted && syscall(SYS_arch_prctl, REQUEST, TILE_DATA) == 0;
    return tiles_allowed;
#else
    return 0;
#endif
}

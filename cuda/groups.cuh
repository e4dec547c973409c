// Tiles of columns: of a matrix, or of experts whose columns stand in one list.
#pragma once
#include "ikq_dev.cuh"

// Some neighbours in the list of columns, which belong to one expert.
struct Group {
    int expert, first, count;
};

// Tile number `tile` of C columns. The columns of expert e are bounds[e] to bounds[e + 1] - 1 of the list, and a tile has
// columns of one expert only; `count` is 0 if there are fewer tiles. All lanes of a warp take part.
template <int C> IKQ_DEV Group group_of_tile(const int *bounds, int n_experts, int tile) {
    const int lane = threadIdx.x & 31;
    int before = 0; // tiles of the experts before these 32
    for (int e0 = 0; e0 < n_experts; e0 += 32) {
        const int e = e0 + lane;
        const int begin = e < n_experts ? bounds[e] : 0, end = e < n_experts ? bounds[e + 1] : 0;
        const int own = (end - begin + C - 1) / C;
        const LaneItem found = item_of_lanes(own, tile, before);
        if (found.lane >= 0) {
            const int first = __shfl_sync(ALL_LANES, begin, found.lane) + C * found.number;
            const int left = __shfl_sync(ALL_LANES, end, found.lane) - first;
            return {e0 + found.lane, first, left < C ? left : C};
        }
    }
    return {0, 0, 0};
}
template <int C> IKQ_DEV Group group_of_matrix(int n_columns, int tile) {
    const int first = C * tile;
    return {0, first, n_columns - first < C ? n_columns - first : C};
}

// Finds the columns of a block, which has C of them at most (blockIdx.y says which), and whether there are any: their group,
// and in `blocks` the first block of 32 of each. Columns that are missing are the last one. Both are in shared memory, for
// which the caller has to wait: registers are few while products are computed.
// Without bounds they are those of a matrix, else entry c of the list is a pair, which reads column list[c] / k.
template <int C>
IKQ_DEV bool find_columns(const int *bounds, const int *list, int n_experts, int k, int n, int n_columns, unsigned *blocks,
                          Group *found) {
    const Group group =
        bounds ? group_of_tile<C>(bounds, n_experts, int(blockIdx.y)) : group_of_matrix<C>(n_columns, int(blockIdx.y));
    if (group.count > 0 && threadIdx.x < unsigned(C)) {
        const int c = group.first + (int(threadIdx.x) < group.count ? int(threadIdx.x) : group.count - 1);
        blocks[threadIdx.x] = unsigned(n / 32) * (bounds ? unsigned(list[c]) / unsigned(k) : unsigned(c));
        if (threadIdx.x == 0) *found = group;
    }
    return group.count > 0;
}

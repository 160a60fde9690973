// The lengths of a cache's rows, counted on the device.
//
// A captured step must not ask the host where its tokens stand: attention reads the lengths from device
// memory, and the step's last launch counts on. One thread a row; 32 bytes a row move, which no
// card can measure: the launch is the cost.

extern "C" __global__ void __launch_bounds__(64) advance_lengths(long long* starts, long long* ends, int rows, int count) {
    int row = blockIdx.x * blockDim.x + threadIdx.x;
    if (row < rows) {
        starts[row] += count;
        ends[row] += count;
    }
}

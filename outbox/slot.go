package outbox

import (
	"hash/crc32"
	"io"
	"strconv"
)

// SlotOf returns the slot of an aggregate's rows: the CRC-32 (IEEE) of channel, a
// zero byte and aggregate id, modulo [Slots]. It is part of the stored format.
func SlotOf(channel, aggregateID string) int {
	h := crc32.NewIEEE()
	_, _ = io.WriteString(h, channel)
	_, _ = h.Write([]byte{0})
	_, _ = io.WriteString(h, aggregateID)
	return int(h.Sum32() % Slots)
}

// LeaseName is the name of a slot's lease: its number. It is part of the stored
// format.
func LeaseName(slot int) string { return strconv.Itoa(slot) }

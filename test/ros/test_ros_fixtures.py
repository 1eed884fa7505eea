# SPDX-License-Identifier: Apache-2.0
"""The ROS fixtures of these tests: two domains do not hear each other, one does."""

import rclpy
from std_msgs.msg import String


def test_nodes_of_one_domain_hear_each_other_and_those_of_another_do_not(
        context, domain_id, spin, wait_for):
    stranger = rclpy.Context()
    rclpy.init(context=stranger, domain_id=domain_id % 100 + 1)
    heard = []
    listener = spin(rclpy.create_node('listener', context=context))
    listener.create_subscription(String, '/chat', lambda message: heard.append(message.data), 10)
    talkers = [rclpy.create_node(name, context=where, start_parameter_services=False)
               for name, where in (('stranger', stranger), ('friend', context))]
    publishers = [node.create_publisher(String, '/chat', 10) for node in talkers]
    wait_for(lambda: publishers[1].get_subscription_count() == 1)
    for node, publisher in zip(talkers, publishers, strict=True):
        publisher.publish(String(data=node.get_name()))
    wait_for(lambda: heard)
    assert heard == ['friend'] and publishers[0].get_subscription_count() == 0
    for node in talkers:
        node.destroy_node()
    stranger.try_shutdown()
